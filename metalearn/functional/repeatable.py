"""Names the layer whose forward pass, run again, would not give the same: a meta-gradient runs it
more than once."""

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.functional.copied import named
from metalearn.functional.module import PureModule
from metalearn.functional.torch_private import version
from metalearn.types import Inputs, Params


def check_repeatable(net: PureModule, weights: Params, x: Inputs) -> Any:
    """Raise UsageError, with the name of the layer, where two calls of `net` on `x` differ: where
    a forward writes into weights or buffers, draws from a generator that no seed of ours sets, or
    gives other numbers. Returns its outputs.

    weights: parameters and buffers, which are not changed. To be called inside a `dropout_stream`.
    An error of the forward is its own.
    """
    copies = tree.clone(weights)
    versions = {name: version(copy) for name, copy in copies.items()}

    def forward() -> Any:
        with torch.no_grad():
            return net.apply(copies, x)

    before = _drawn_from(net.module)
    first = forward()
    for name, copy in copies.items():
        if version(copy) != versions[name]:
            path, _, key = name.rpartition(".")
            raise UsageError(
                f"{named(path, net.module.get_submodule(path))} changes {key} in its forward; "
                "make it a constant, or call eval() on it: the inner loop runs a forward more "
                "than once"
            )
    drawn = _changed(before, _drawn_from(net.module))
    if drawn and (where := _drawing(net, forward)):
        raise UsageError(
            f"{where} draws from {drawn}, which cannot repeat what it drew; use torch's dropout "
            "or torch.rand, or call eval() on it"
        )
    second = forward()
    if not _same(first, second):
        raise UsageError(
            f"{_unlike(net, forward)} gives other numbers when it is called again; a forward has "
            "to be a function of weights and inputs, and draw by torch's dropout or torch.rand"
        )
    return first


def _drawn_from(module: nn.Module) -> dict[str, Any]:
    """The state of every generator that is not ours, by its name for messages."""
    states: dict[str, Any] = {
        "Python's random": random.getstate(),
        "NumPy's generator": pickle.dumps(np.random.get_state(legacy=False)),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
    }
    for part in module.modules():
        for name, value in vars(part).items():
            told = f"its own generator {name}"
            if isinstance(value, random.Random):
                states[told] = value.getstate()
            elif isinstance(value, np.random.Generator):
                states[told] = pickle.dumps(value.bit_generator.state)
            elif isinstance(value, np.random.RandomState):
                states[told] = pickle.dumps(value.get_state(legacy=False))
            elif isinstance(value, torch.Generator):
                states[told] = value.get_state().numpy().tobytes()
    if torch.cuda.is_initialized():
        states["torch's generator on the device"] = torch.cuda.get_rng_state().numpy().tobytes()
    return states


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    return next((name for name, state in before.items() if after.get(name) != state), "")


@contextmanager
def _around(
    net: PureModule, enter: Callable[[str, Any], None], leave: Callable[[str, Any, Any], None]
) -> Iterator[None]:
    """Calls `enter(path, inputs)` and `leave(path, inputs, output)` around each part's forward."""
    with ExitStack() as stack:
        for path, part in net.module.named_modules():
            for handle in (
                part.register_forward_pre_hook(lambda _, x, path=path: enter(path, x)),
                part.register_forward_hook(lambda _, x, y, path=path: leave(path, x, y)),
            ):
                stack.callback(handle.remove)
        yield


def _drawing(net: PureModule, forward: Callable[[], Any]) -> str:
    """The first part whose own forward draws: the innermost, which ends before those around it. ""
    where none does, and it was another thread."""
    states: dict[str, Any] = {}
    found: list[str] = []

    def enter(path: str, x: Any) -> None:
        states[path] = _drawn_from(net.module)

    def leave(path: str, x: Any, y: Any) -> None:
        if _changed(states[path], _drawn_from(net.module)):
            found.append(path)

    with _around(net, enter, leave):
        forward()
    return named(found[0], net.module.get_submodule(found[0])) if found else ""


def _unlike(net: PureModule, forward: Callable[[], Any]) -> str:
    """The first part whose outputs differ between two calls."""
    calls: list[list[tuple[str, Any]]] = []
    for _ in range(2):
        calls.append([])
        with _around(net, lambda *_: None, lambda path, x, y: calls[-1].append((path, _copy(y)))):
            forward()
    for (path, one), (other, two) in zip(*calls, strict=False):
        if path != other or not _same(one, two):
            return named(path, net.module.get_submodule(path))
    return named("", net.module)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (t for part in value.values() for t in _tensors(part))
    elif isinstance(value, list | tuple):
        yield from (t for part in value for t in _tensors(part))


def _copy(value: Any) -> list[Tensor]:
    return [t.clone() for t in _tensors(value)]


def _same(a: Any, b: Any) -> bool:
    """Equal to the bit; on a device that adds in any order, but for rounding."""

    def same(a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.device.type == "cpu":
            a, b = (t.nan_to_num() if t.dtype.is_floating_point else t for t in (a, b))
            return torch.equal(a, b)
        return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)

    one, other = [*_tensors(a)], [*_tensors(b)]
    return len(one) == len(other) and all(map(same, one, other))
