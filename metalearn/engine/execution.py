"""How one piece is run: as it stands, under `vmap`, compiled."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn import tree
from metalearn.engine.compiler import Compiled, compiled
from metalearn.engine.lowering import unfolding
from metalearn.engine.task import Task
from metalearn.functional.norm_functions import fused_norms
from metalearn.functional.precision import mode
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Meta

_kind = attrgetter("shape", "dtype", "device")


def setting(algo: MetaAlgorithm, meta: Meta) -> tuple:
    """What may differ between calls of the same function with `meta`, beside its tensors: code that
    was compiled for others would be wrong. Names stand in an order, which that of the tensors
    follows; a file may hold another one."""
    names = tuple(meta["init"]), tuple(meta["hyper"]), tuple(meta["buffers"])
    return (*names, mode(), torch.get_num_threads(), algo.net.modes())


def kinds(tensors: Sequence[Tensor]) -> tuple:
    """What code is compiled for, of its inputs."""
    return tuple(map(_kind, tensors))


def _others(leaves: Sequence[Any]) -> list[Any]:
    """What is no tensor, and where it stands."""
    return [(i, leaf) for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)]


class Execution(NamedTuple):
    """A `Run` of one task at a time, or of a part of the meta-batch with a leading T.

    `vmap` stands outermost, around the derivatives that a piece takes inside itself. The other
    order, the gradient of a vmapped loss, is silently wrong through fused norms (functorch
    issue 534).

    fused: let norms use torch's kernels where nothing stands around a piece.
    """

    vmapped: bool = False
    compile: bool = False
    forward: bool = False
    unfold: bool = False
    fused: bool = True

    def __call__(
        self,
        piece: Callable[..., Any],
        algo: MetaAlgorithm,
        meta: Meta,
        *args: Any,
        **options: Any,
    ) -> Any:
        """`piece(algo, meta, *args, **options)`; under `vmap` every tensor of `args` has a T."""
        if not self.vmapped and not self.compile:
            fused = fused_norms() if self.fused else nullcontext()
            with fused, unfolding() if self.unfold else nullcontext():
                return piece(algo, meta, *args, **options)

        if self.compile:
            code, tensors = self.compiled(piece, algo, meta, *args, **options)
            return code(tensors)
        given = meta, args
        leaves = tree.leaves(given)
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        return self._of_tensors(partial(piece, algo), given, leaves, options)(*tensors)

    def compiled(
        self,
        piece: Callable[..., Any],
        algo: MetaAlgorithm,
        meta: Meta,
        *args: Any,
        **options: Any,
    ) -> tuple[Compiled, list[Tensor]]:
        """`piece` compiled, and the tensors to call that with: those of `meta` and `args`."""
        given = meta, args
        leaves = tree.leaves(given)
        tensors = [t for t in leaves if isinstance(t, Tensor)]

        def function() -> Callable[..., Any]:
            return self._of_tensors(partial(piece, algo), given, leaves, options)

        others = () if len(tensors) == len(leaves) else _others(leaves)
        key = piece, self, *others, *options.items(), *setting(algo, meta), *kinds(tensors)
        return compiled(algo, key, function, tensors, not self.vmapped), tensors

    def _of_tensors(
        self,
        piece: Callable[..., Any],
        given: tuple[Meta, tuple],
        leaves: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Callable[..., Any]:
        """`piece` as a function of the tensors among the `leaves` of `given`."""

        def flat(*tensors: Tensor) -> Any:
            rest = iter(tensors)
            filled = (next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
            meta, args = tree.rebuild(given, filled)
            with unfolding() if self.unfold else nullcontext():
                return piece(meta, *args, **options)

        if not self.vmapped:
            return flat
        shared, args = ([t for t in tree.leaves(part) if isinstance(t, Tensor)] for part in given)
        in_dims = (*[None] * len(shared), *[0] * len(args))
        return torch.func.vmap(flat, in_dims, randomness="different")

    def numbers(self, steps: int, task: Task) -> Tensor:
        """The numbers of the inner steps, `[steps]`, or `[steps, T]` under `vmap`."""
        x = task.support.x
        numbers = torch.arange(steps, device=x.device)
        return numbers.unsqueeze(1).expand(steps, len(x)).contiguous() if self.vmapped else numbers
