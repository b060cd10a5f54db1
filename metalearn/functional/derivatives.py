"""Names the layer that cannot be differentiated as a meta-gradient asks for."""

from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metalearn.errors import UsageError, reason_of
from metalearn.functional.copied import named
from metalearn.functional.module import PureModule
from metalearn.functional.overrides import Exact
from metalearn.functional.torch_private import has_backward_hook
from metalearn.types import Inputs, Params

_INSTEAD = {
    "by torch.func": "",
    "twice": " or use gradient=first_order",
    "under vmap": " or use batching=loop",
}


def check_differentiable(
    net: PureModule,
    weights: Params,
    x: Inputs,
    order: int = 2,
    batched: bool = False,
    adapting: Collection[str] | None = None,
) -> None:
    """Raise UsageError, with the name of the layer, where `net` cannot be differentiated by its
    parameters `order` times, or `vmap` does not know how.

    x: a few inputs `[B, *X]`. weights: parameters and buffers. batched: the gradient is also taken
    under `vmap`. adapting: what the first of two derivatives is for, None for all.

    Found: operations and autograd functions that torch cannot differentiate so, and a network
    whose weights get no gradient at all.
    """
    params = {name: weights[name] for name in net.params}
    rest = {name: t for name, t in weights.items() if name not in params}

    def output(inputs: Params) -> Any:
        given = {n: inputs[f"input {n}"] for n in x} if isinstance(x, dict) else inputs["input 0"]
        return net.apply({**rest, **{n: inputs[n] for n in params}}, given)

    data = {f"input {n}": t for n, t in (x if isinstance(x, dict) else {"0": x}).items()}
    # No derivative is taken by the data: only a part inside is given what depends on weights.
    trial = _Trial(order, batched, params if adapting is None else set(adapting) & {*params})
    with torch.enable_grad():
        failure = trial(output, params, data, {})
        if failure is not None:
            culprit, (how, why) = _culprit(net, weights, x, trial, failure)
            instead = f"replace it{_INSTEAD[how]}"
            raise UsageError(f"{culprit} cannot be differentiated {how}: {why}; {instead}")
        grads = grad(lambda params: _scalar(output({**params, **data})))(params)
    if params and not any(g.any() for g in grads.values()):
        raise UsageError(
            f"{named('', net.module)}: no gradient reaches its weights; "
            "look for detach(), no_grad() or integer outputs in its forward"
        )


def check_layers(net: PureModule, order: int) -> None:
    """Raise UsageError for quantised layers, and for hooks on the backward pass where there is
    one."""
    for path, part in net.module.named_modules():
        if "quantized" in type(part).__module__.split("."):
            raise UsageError(f"{named(path, part)} is quantised: use the float network")
        if order and has_backward_hook(part):
            raise UsageError(
                f"{named(path, part)} has a hook on its backward pass, which torch.func does not "
                "run; remove it"
            )


def _scalar(output: Any) -> Tensor:
    """The sum of the squares of 1 + all that is real in `output`."""
    if isinstance(output, Tensor):
        # 1 more, because the square of what a head at 0 gives has no slope.
        return (output + 1).square().sum() if output.is_floating_point() else torch.zeros(())
    parts = output.values() if isinstance(output, dict) else output
    parts = parts if isinstance(parts, list | tuple) or isinstance(output, dict) else []
    return _sum(map(_scalar, parts))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return sum(parts, torch.zeros(()))


class _Trial:
    """Differentiates a function as a meta-gradient does. inner: the weights of the first of two
    derivatives; None for all that is real."""

    def __init__(self, order: int, batched: bool, inner: Collection[str] | None):
        self.order, self.batched, self.inner = order, batched, inner

    def __call__(
        self, f: Callable[[Params], Any], weights: Params, data: Params, given: Params
    ) -> tuple[str, str] | None:
        """How `f` of all the tensors cannot be differentiated, and what torch says; None where it
        can.

        weights: one for all tasks. data, given: each task's own under `vmap`; by `given` too is a
        derivative taken.
        """
        real = {n: t for n, t in {**weights, **given}.items() if t.is_floating_point()}
        fixed = {n: t for n, t in {**weights, **data, **given}.items() if n not in real}

        def loss(real: Params, fixed: Params) -> Tensor:
            return _scalar(f({**real, **fixed}))

        def inner(real: Params) -> Params:
            return {n: t for n, t in real.items() if self.inner is None or n in self.inner}

        def slope(real: Params, fixed: Params) -> Tensor:
            grads = grad(lambda part: loss({**real, **part}, fixed))(inner(real))
            return _sum(g.square().sum() for g in grads.values())

        def once() -> None:
            grad(loss)(real, fixed)

        def twice() -> None:
            leaves = {n: t.detach().requires_grad_() for n, t in real.items()}
            value = loss(leaves, fixed)
            part = list(inner(leaves).values())
            if self.order < 2 or not value.requires_grad or not part:
                return
            grads = torch.autograd.grad(value, part, create_graph=True, allow_unused=True)
            value = _sum(g.square().sum() for g in grads if g is not None)
            # Not torch.func and not autograd.grad: both silently take for a constant what an
            # autograd function marked as differentiable once hands back.
            if value.requires_grad:
                value.backward()

        def many() -> None:
            own = {**data, **given}
            derived = slope if self.order > 1 and inner(real) else loss

            # The weights are shared, as before the first inner step.
            def one(own: Params) -> Params:
                mine = {n: own.get(n, t) for n, t in real.items()}
                return grad(derived)(mine, {n: own.get(n, t) for n, t in fixed.items()})

            if self.batched and own:
                two = {n: torch.stack([t, t]) for n, t in own.items()}
                vmap(one, randomness="different")(two)

        for how, derivative in zip(_INSTEAD, (once, twice, many), strict=True):
            try:
                derivative()
            except UsageError:
                raise
            except Exception as error:
                return how, reason_of(error)
        return None


def _culprit(
    net: PureModule, weights: Params, x: Inputs, trial: _Trial, failure: tuple[str, str]
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

    inside = _Trial(trial.order, trial.batched, None)
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
        own = {
            f"{path}.{name}": weights.get(f"{path}.{name}", tensor)
            for name, tensor in part.named_parameters()
        }

        def call(inputs: Params, part=part, path=path, args=args, kwargs=kwargs, own=own) -> Any:
            # Copies: what works in place is given what another layer made, not a leaf.
            data = {n: t.clone() for n, t in inputs.items() if n not in own}
            given = {n.removeprefix(f"{path}."): inputs[n] for n in own}
            args = [data.get(f"input {i}", value) for i, value in enumerate(args)]
            kwargs = {n: data.get(f"input {n}", value) for n, value in kwargs.items()}
            with Exact() if net.exact else nullcontext():
                return functional_call(part, given, tuple(args), kwargs)

        found = inside(call, own, {}, data)
        # What fails in another way alone lacks what those around it would have given it.
        if found is not None and found[0] == failure[0]:
            return named(path, part), found
    return named("", net.module), failure
