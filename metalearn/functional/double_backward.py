"""Names the layer that cannot be differentiated twice, before a run spends time on it."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metalearn.errors import UsageError
from metalearn.functional import PureModule
from metalearn.functional.overrides import Exact
from metalearn.functional.torch_private import version
from metalearn.types import Inputs, Params, first_tensor, map_tensors


def check_twice_differentiable(net: PureModule, x: Inputs, batched: bool = False) -> None:
    """Raise UsageError, with the name of the layer, where `net` has no second derivative.

    x: a few inputs `[B, *X]` on the device of the run, where it matters: of torch's recurrent
    layers only cuDNN's lack the double backward. Two of them are used, for one pass of second
    order. batched: the gradient is also to be taken under `vmap`.

    Found: operations and autograd functions that torch cannot differentiate twice (or `vmap`),
    quantised layers, buffers that a forward pass changes, and a network whose weights get no
    gradient at all. An error of the forward pass itself is raised as it is.
    """
    x = map_tensors(lambda t: t[:2].detach(), x)
    device = first_tensor(x).device
    params, buffers = ({n: t.to(device) for n, t in p.items()} for p in (net.params, net.buffers))
    for path, part in net.module.named_modules():
        if "quantized" in type(part).__module__.split("."):
            raise UsageError(f"{_named(path, part)} is quantised: use the float network")
    _check_buffers(net, params, buffers, x)

    def output(inputs: Params) -> Tensor:
        given = {n: inputs[f"input {n}"] for n in x} if isinstance(x, dict) else inputs["input 0"]
        return net.apply({**buffers, **{n: inputs[n] for n in params}}, given)

    data = {f"input {n}": t for n, t in (x if isinstance(x, dict) else {"0": x}).items()}
    failure = _failure(output, params, data, batched)
    if failure is not None:
        culprit, (how, reason) = _culprit(net, {**buffers, **params}, x, batched, failure)
        raise UsageError(
            f"{culprit} cannot be differentiated {how}: {reason}; replace it{_INSTEAD[how]}"
        )
    grads = grad(lambda params: _scalar(output({**params, **data})))(params)
    if params and not any(g.any() for g in grads.values()):
        raise UsageError(
            f"{_named('', net.module)}: no gradient reaches its weights; "
            "look for detach(), no_grad() or integer outputs in its forward"
        )


_INSTEAD = {
    "by torch.func": "",
    "twice": " or use gradient=first_order",
    "under vmap": " or use batching=loop",
}


def _named(path: str, part: nn.Module) -> str:
    return f"{path} ({type(part).__name__})" if path else type(part).__name__


def _check_buffers(net: PureModule, params: Params, buffers: Params, x: Inputs) -> None:
    copies = {name: buffer.clone() for name, buffer in buffers.items()}
    versions = {name: version(copy) for name, copy in copies.items()}
    with torch.no_grad():
        net.apply({**params, **copies}, x)
    for name, copy in copies.items():
        if version(copy) != versions[name]:
            path, _, key = name.rpartition(".")
            raise UsageError(
                f"{_named(path, net.module.get_submodule(path))} changes {key} in its forward; "
                "make it a constant: the inner loop runs a forward more than once"
            )


def _scalar(output: Any) -> Tensor:
    """The sum of the squares of 1 + all that is real in `output`."""
    if isinstance(output, Tensor):
        # 1 more, because the square of what a head at 0 gives has no slope.
        return (output + 1).square().sum() if output.is_floating_point() else torch.zeros(())
    parts = output.values() if isinstance(output, dict) else output
    parts = parts if isinstance(parts, list | tuple) else []
    return _sum(map(_scalar, parts))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return sum(parts, torch.zeros(()))


def _failure(
    f: Callable[[Params], Any], weights: Params, data: Params, batched: bool
) -> tuple[str, str] | None:
    """How `f` of weights and data cannot be differentiated, and what torch says; None where it
    can."""
    inputs = {**weights, **data}
    whole = {n: t for n, t in inputs.items() if not t.is_floating_point()}
    real = {n: t for n, t in inputs.items() if n not in whole}

    def loss(real: Params, whole: Params) -> Tensor:
        return _scalar(f({**real, **whole}))

    def slope(real: Params, whole: Params) -> Tensor:
        return _sum(g.square().sum() for g in grad(loss)(real, whole).values())

    def once() -> None:
        grad(loss)(real, whole)

    def twice() -> None:
        leaves = {n: t.detach().requires_grad_() for n, t in real.items()}
        value = loss(leaves, whole)
        if not value.requires_grad:
            return
        grads = torch.autograd.grad(
            value, list(leaves.values()), create_graph=True, allow_unused=True
        )
        value = _sum(g.square().sum() for g in grads if g is not None)
        # Not torch.func and not autograd.grad: both silently take for a constant what an
        # autograd function marked as differentiable once hands back.
        if value.requires_grad:
            value.backward()

    def many() -> None:
        # The weights are shared, as before the first inner step; the data is each task's own.
        def one(data: Params) -> Params:
            mine = {**real, **{n: t for n, t in data.items() if n in real}}
            return grad(slope)(mine, {**whole, **{n: data[n] for n in data if n in whole}})

        if batched and data:
            vmap(one, randomness="different")({n: torch.stack([t, t]) for n, t in data.items()})

    for how, derivative in zip(_INSTEAD, (once, twice, many), strict=True):
        try:
            derivative()
        except RuntimeError as error:
            return how, str(error).strip().splitlines()[0].rstrip(".")
    return None


def _culprit(
    net: PureModule, weights: Params, x: Inputs, batched: bool, failure: tuple[str, str]
) -> tuple[str, tuple[str, str]]:
    """The innermost module that fails by itself on what it met in one forward pass."""
    met: dict[nn.Module, tuple[tuple, dict[str, Any]]] = {}

    def note(part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        met.setdefault(part, (args, kwargs))

    parts = list(net.module.named_modules())
    hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for _, part in parts]
    try:
        with torch.no_grad():
            net.apply(weights, x)
    finally:
        for hook in hooks:
            hook.remove()

    # Backwards, so that children come before their parents.
    for path, part in reversed(parts):
        if part not in met or not path:
            continue
        args, kwargs = met[part]
        data = {
            f"input {place}": value
            for place, value in [*enumerate(args), *kwargs.items()]
            if isinstance(value, Tensor)
        }
        named = {
            f"{path}.{name}": weights.get(f"{path}.{name}", tensor)
            for name, tensor in part.named_parameters()
        }

        def call(
            inputs: Params, part=part, path=path, args=args, kwargs=kwargs, named=named
        ) -> Any:
            given = {n.removeprefix(f"{path}."): inputs[n] for n in named}
            args = [inputs.get(f"input {i}", value) for i, value in enumerate(args)]
            kwargs = {n: inputs.get(f"input {n}", value) for n, value in kwargs.items()}
            with Exact() if net.exact else nullcontext():
                return functional_call(part, given, tuple(args), kwargs)

        found = _failure(call, named, data, batched)
        if found is not None:
            return _named(path, part), found
    return _named("", net.module), failure
