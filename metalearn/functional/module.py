"""Any `nn.Module` as a pure function of its weights that can be differentiated twice."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import tree
from metalearn.functional.copied import copied
from metalearn.functional.masks import applied
from metalearn.functional.norm_functions import Call, Moments, calling, in_forward
from metalearn.functional.norms import BatchNorm, Statistics, replace_norms, statistics_of
from metalearn.functional.outputs import outputs_of
from metalearn.functional.overrides import Exact, needs_exact
from metalearn.functional.precision import narrowed, widened
from metalearn.functional.torch_private import plain_checkpoints
from metalearn.types import META_STEP, Inputs, Outputs, Params, first_tensor, map_tensors


@dataclass(frozen=True, eq=False)
class PureModule:
    """A module without state: `apply(weights, x)`.

    module: the private copy that carries the structure.
    params: its trainable starting weights, detached; parameters with `requires_grad=False`
        are frozen and counted with the buffers.
    buffers: everything else that a forward pass reads. No gradient reaches them.
    places: for each name, all the places in the module that hold the tensor (tied weights).
    exact: whether `overrides.Exact` stands around each forward pass, because layers with a
        forward of their own may call what is inexact in second order, or draw at random.
    passed: what `double_backward.check_network` found nothing wrong with.
    """

    module: nn.Module
    params: Params
    buffers: Params
    places: dict[str, tuple[str, ...]]
    exact: bool = False
    passed: set[tuple] = field(default_factory=set, init=False, repr=False)

    def _forward(self, weights: Params, x: Inputs) -> Outputs:
        # Not functional_call's own tie_weights: where one layer stands at two places of the
        # module, it leaves the layer with the weights of the call (pytorch 164759).
        placed = {
            place: t
            for name, t in applied(weights).items()
            if name != META_STEP
            for place in self.places.get(name, (name,))
        }
        with Exact() if self.exact else nullcontext():
            return outputs_of(functional_call(self.module, placed, (x,), tie_weights=False))

    def apply(self, weights: Params, x: Inputs, weight: Tensor | None = None) -> Outputs:
        """The module's output for `x` `[B, *X]` under `weights` (parameters, buffers, support
        statistics; a name left out keeps its starting value). `weight` `[B]` marks padding.

        A dict of inputs is handed to the module as it is; padding as a copy of an example that
        counts, since what a network makes of zeros may overflow, and 0 times that is no number.
        Of what the module returns, neither a tensor nor a dict, `outputs.outputs_of` takes the
        tensor; UsageError where there is none, or several.
        """
        if weight is not None:
            x = map_tensors(partial(without_padding, weight != 0), x)
        like = next((t for t in weights.values() if t.is_floating_point()), first_tensor(x))
        with calling(Call(weight)):
            y = self._forward(tree.map(narrowed, weights), map_tensors(narrowed, x))
            return map_tensors(lambda t: widened(t, like), y)

    def before(self, path: str, weights: Params, x: Inputs, weight: Tensor | None = None) -> Tensor:
        """What the submodule at `path` is given when the module is applied to `x`.

        Raises RuntimeError where that is not one tensor, given once.
        """
        seen: list[Tensor] = []
        part = self.module.get_submodule(path)
        handle = part.register_forward_pre_hook(lambda _, given: seen.extend(given))
        try:
            output = self.apply(weights, x, weight)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise RuntimeError(f"{path} is given {len(seen)} tensors, not one")
        return widened(seen[0], first_tensor(output))

    def part(self, path: str) -> "PureModule":
        """The submodule at `path`, its tensors under the names that they have in the whole."""
        start = f"{path}."
        inside = {
            name: tuple(place.removeprefix(start) for place in places if place.startswith(start))
            for name, places in self.places.items()
        }
        params, buffers = (
            {name: t for name, t in tensors.items() if inside.get(name)}
            for tensors in (self.params, self.buffers)
        )
        return replace(
            self, module=self.module.get_submodule(path), params=params, buffers=buffers,
            places=inside,
        )  # fmt: skip

    def _record(
        self, weights: Params, x: Inputs, weight: Tensor | None
    ) -> dict[nn.Module | Tensor, tuple[Tensor, ...]]:
        """The moments that each norm layer met in one forward pass."""
        record: dict[nn.Module | Tensor, tuple[Tensor, ...]] = {}
        if weight is not None:
            x = map_tensors(partial(without_padding, weight != 0), x)
        with calling(Call(weight, record)):
            self._forward(weights, x)
        return record

    def support_statistics(
        self, weights: Params, x: Inputs, weight: Tensor | None = None
    ) -> Params:
        """What `apply` needs to treat queries by the statistics of the support set `x`.

        Empty, and free, unless a norm layer has `statistics="support"`.
        """
        norms = self._norms("support")
        if not norms:
            return {}
        known = ("support_mean", "support_var")
        weights = {n: t for n, t in weights.items() if n.rpartition(".")[2] not in known}
        record = self._record(weights, x, weight)
        return {
            f"{prefix}support_{kind}": value
            for prefix, norm in norms.items()
            for kind, value in zip(("mean", "var"), record[norm], strict=True)
        }

    @torch.no_grad()
    def track(
        self,
        weights: Params,
        buffers: Params,
        x: Inputs,
        weight: Tensor | None = None,
        together: Callable[[list[Moments]], Sequence[Moments]] = list,
    ) -> Params:
        """`buffers` after the running averages took one step of their momentum towards the
        statistics of `x` `[B, *X]` under `weights`. Unchanged without such norm layers.

        together: from what each layer met here to what it met on all ranks.
        """
        norms = {prefix: n for prefix, n in self._norms("running").items() if n.momentum}
        if not norms:
            return buffers
        record = self._record({**buffers, **weights}, x, weight)
        found: dict[str, Moments] = {}
        for prefix, norm in norms.items():
            own = norm if isinstance(norm, BatchNorm) else buffers[f"{prefix}running_mean"]
            if own in record:  # else not part of this forward pass
                found[prefix] = Moments(*record[own])
        moved = dict(buffers)
        for prefix, met in zip(found, together([*found.values()]), strict=True):
            for kind, value in (("mean", met.mean), ("var", met.var)):
                key, momentum = f"{prefix}running_{kind}", norms[prefix].momentum
                moved[key] = torch.lerp(buffers[key], value.flatten(), momentum)
        return moved

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, what depends on the mode of a module (dropout) behaves as in evaluation.

        The norm layers do not: their statistics were chosen when the module was made pure.
        """
        training = [part for part in self.module.modules() if part.training]
        self.module.eval()
        try:
            yield
        finally:
            for part in training:
                part.training = True

    @cached_property
    def _parts(self) -> tuple[nn.Module, ...]:
        return tuple(self.module.modules())

    def modes(self) -> tuple[bool, ...]:
        """The mode of each part of the module: whether it is in training."""
        return tuple([part.training for part in self._parts])  # a list is faster than a generator

    def _norms(self, statistics: Statistics) -> dict[str, Any]:
        """The norm layers that normalise by `statistics`, under the prefix of their tensors."""
        return {
            f"{name}." if name else "": part
            for name, part in self.module.named_modules()
            if statistics_of(part) == statistics
        }


def without_padding(real: Tensor, x: Tensor) -> Tensor:
    """`x` `[B, *X]` whose examples that are not `real` `[B]` are copies of the first that is."""
    first = x.index_select(0, real.long().argmax().view(1))
    return torch.where(real.view(-1, *[1] * (x.ndim - 1)), x, first)


def _places(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every place of a parameter or buffer, under the name that `named_parameters` gives it."""
    places: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        # Only of this part, and under every name: the defaults give a tied tensor once.
        for tensors in (part.named_parameters, part.named_buffers):
            for key, tensor in tensors(recurse=False, remove_duplicate=False):
                places.setdefault(id(tensor), []).append(f"{path}.{key}" if path else key)
    return {names[0]: tuple(names) for names in places.values()}


def pure(module: nn.Module) -> PureModule:
    """Make `module` pure; the module itself is neither changed nor referred to afterwards.

    Wrappers such as `torch.compile`'s are taken off (`copied.copied`, which says what is refused
    with a UsageError). Tied weights stay tied. Modules in eval mode normalise by their running
    averages, those in train mode by the statistics of the batch. First and second derivatives are
    exact under every transform of `torch.func`, in any order. What is drawn at random, dropout
    first of all, follows from the `dropout_stream` around a call, and is torch's own outside of it.
    `torch.utils.checkpoint` inside keeps what it would compute again.
    """
    module = replace_norms(copied(module))
    params = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    buffers = {n: b.detach() for n, b in module.named_buffers() if b is not None}
    everything = {**frozen, **buffers}
    if exact := needs_exact(module):
        plain_checkpoints(in_forward)
    return PureModule(module, params, everything, _places(module), exact)
