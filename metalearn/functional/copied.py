"""A copy of the network that a user brings, as the module that stands behind wrappers and hooks."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metalearn.errors import UsageError, reason_of
from metalearn.functional.torch_private import compiled_from, has_forward_pre_hook, kept_by_hook

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def named(path: str, part: nn.Module) -> str:
    """A part of a network, for messages: its path and its class."""
    kind = type(part).__name__
    return f"{path} ({kind})" if path else kind


def copied(module: nn.Module) -> nn.Module:
    """A copy of `module`, which is neither changed nor referred to afterwards.

    Of what `torch.compile`, `DataParallel` and its like wrap, the module inside. A weight that
    pruning or weight norm computes before each forward is computed whenever it is read.

    Raises UsageError for what is no module, scripted, lazy and never called, or cannot be copied.
    """
    if not isinstance(module, nn.Module):
        what = getattr(module, "__name__", None) or f"a {type(module).__name__}"
        raise UsageError(f"the network is {what}, not an nn.Module; give a module")
    memo: dict[int, Any] = {}
    parts = [*_unwrapped(module).named_modules()]
    for path, part in parts:
        _check(path, part)
    try:
        # The inner ones first, so that what wraps them finds them copied.
        for _, part in reversed(parts):
            for tensor in _computed(part).values():
                memo[id(tensor)] = tensor.detach().clone()
            if (inside := _unwrapped(part)) is not part:
                memo[id(part)] = copy.deepcopy(inside, memo)
        new = copy.deepcopy(_unwrapped(module), memo)
    except Exception as error:
        raise UsageError(f"the network cannot be copied: {reason_of(error)}") from None
    for part in new.modules():
        _compute_when_read(part)
    return new


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        inside = module.module if isinstance(module, _WRAPPERS) else compiled_from(module)
        if inside is None:
            return module
        module = inside


def _check(path: str, part: nn.Module) -> None:
    if isinstance(part, torch.jit.ScriptModule):
        raise UsageError(f"{named(path, part)} is scripted; give the module before torch.jit")
    if any(is_lazy(t) for t in (*part.parameters(recurse=False), *part.buffers(recurse=False))):
        raise UsageError(
            f"{named(path, part)} has no weights yet; call the network on one batch first"
        )
    known = kept_by_hook(part)
    kept = [name for name in _computed(part) if name.partition("[")[0] not in known]
    if kept and not (has_forward_pre_hook(part) or isinstance(part, nn.RNNBase)):
        raise UsageError(
            f"{named(path, part)} keeps {kept[0]}, which was computed from weights; compute it in "
            "the forward, or set it to None"
        )


def _computed(part: nn.Module) -> dict[str, Tensor]:
    """The tensors with a history that a module keeps beside its parameters."""

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, list | tuple):
                yield from ((f"{name}[{i}]", t) for i, t in enumerate(value))

    return {name: t for name, t in tensors() if isinstance(t, Tensor) and t.grad_fn is not None}


def _compute_when_read(part: nn.Module) -> None:
    if isinstance(part, nn.RNNBase):
        # It keeps its weights in a list too, which a hook fills, and which may hold those of a
        # functional call.
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, weight)
        return
    found = kept_by_hook(part, take=True)
    if not found:
        return
    for name in found:
        vars(part).pop(name, None)
    kind = type(part)
    own: dict[str, Any] = {name: property(compute) for name, compute in found.items()}
    # No longer a plain layer of torch's, as its module would say.
    part.__class__ = type(kind.__name__, (kind,), {**own, "__module__": "computed when read"})
