"""Everything that the answer of autotuning depends on, as a text."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.functional import PureModule
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.device import processor_model
from metalearn.types import Episodes, Meta

_DEEP = 8  # levels of nested values that are described


def question(
    strategy: Any,
    algo: MetaAlgorithm,
    meta: Meta,
    episodes: Episodes,
    options: tuple[str, ...],
    many: bool,
) -> str:
    """What a plan was measured for.

    The algorithm's class and everything that it holds (what adapts, inner rule, loss, network),
    shapes, strategy, options (precision, capture, `lite`), threads, torch and the processor: a plan
    of another algorithm or machine answers another question.
    """
    x = episodes.support
    cuda = x.device.type == "cuda"
    weights = [(n, tuple(t.shape)) for part in ("init", "hyper") for n, t in meta[part].items()]
    shapes: list[Any] = []
    episodes.map(lambda t: (shapes.append((tuple(t.shape), t.dtype)), t)[1])
    machine = torch.cuda.get_device_name(x.device) if cuda else processor_model()
    asked = described(strategy), described(algo), weights, shapes, options, many
    return "\n".join(map(str, (*asked, machine, torch.get_num_threads(), torch.__version__)))


def described(value: Any, depth: int = 0) -> str:
    """What `value` does, in words that are the same in every process: functions by name and by
    what they close over, modules by their layers, objects by class and what they hold."""
    if depth > _DEEP:
        return type(value).__qualname__
    again = functools.partial(described, depth=depth + 1)
    if isinstance(value, nn.Module):
        return str(value)
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, PureModule):
        return again(value.module)
    if isinstance(value, functools.partial):
        return again((value.func, value.args, value.keywords))
    if inspect.isroutine(value):
        cells = [again(cell.cell_contents) for cell in getattr(value, "__closure__", None) or ()]
        return f"{value.__module__}.{value.__qualname__}{cells}"
    if isinstance(value, Mapping):
        return str([(again(name), again(part)) for name, part in value.items()])
    if isinstance(value, set | frozenset):
        return str(sorted(map(again, value)))
    if isinstance(value, list | tuple):
        return f"{type(value).__qualname__}{[again(part) for part in value]}"
    if value is None or isinstance(value, str | int | float | bool | type):
        return repr(value)
    held, kind = getattr(value, "__dict__", {}), type(value)
    if is_dataclass(value):
        held = {part.name: getattr(value, part.name) for part in fields(value)}
    return f"{kind.__module__}.{kind.__qualname__} {again(held)}"
