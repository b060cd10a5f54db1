"""How one piece is run: as it stands, under `vmap`, compiled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.engine.compiler import Cache, Compiled, compiled
from metalearn.engine.lowering import by_im2col
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


def _names(nested: Any) -> Iterator[tuple[str, ...]]:
    """The names of every dict in nested ones and tuples, in the order that its tensors follow: two
    inputs of one shape in another order would each be taken for the other."""
    if isinstance(nested, dict):
        yield tuple(nested)
    elif isinstance(nested, tuple):
        for part in nested:
            if isinstance(part, dict | tuple):
                yield from _names(part)


@dataclass(frozen=True)
class Execution:
    """A `Run` of one task at a time, or of a part of the meta-batch with a leading T.

    `vmap` stands outermost, around the derivatives that a piece takes inside itself. The other
    order, the gradient of a vmapped loss, is silently wrong through fused norms (functorch
    issue 534).

    fused: let norms use torch's kernels where nothing stands around a piece. cache: of what is
    compiled; None where nothing is.
    """

    vmapped: bool = False
    compile: bool = False
    forward_over_reverse: bool = False
    im2col: bool = False
    fused: bool = True
    cache: Cache | None = field(default=None, compare=False, repr=False)

    def __call__(
        self, piece: Callable[..., Any], algo: MetaAlgorithm, meta: Meta, *args: Any, **options: Any
    ) -> Any:
        """`piece(algo, meta, *args, **options)`; under `vmap` every tensor of `args` has a T."""
        if not self.vmapped and not self.compile:
            fused = fused_norms() if self.fused else nullcontext()
            with fused, by_im2col() if self.im2col else nullcontext():
                return piece(algo, meta, *args, **options)

        if self.compile:
            code, tensors = self.compiled(piece, algo, meta, *args, **options)
            return code(tensors)
        given = meta, args
        leaves = tree.leaves(given)
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        return self._of_tensors(partial(piece, algo), given, leaves, options)(*tensors)

    def compiled(
        self, piece: Callable[..., Any], algo: MetaAlgorithm, meta: Meta, *args: Any, **options: Any
    ) -> tuple[Compiled, list[Tensor]]:
        """`piece` compiled, and the tensors to call that with: those of `meta` and `args`."""
        given = meta, args
        leaves = tree.leaves(given)
        tensors = [t for t in leaves if isinstance(t, Tensor)]

        def function() -> Callable[..., Any]:
            return self._of_tensors(partial(piece, algo), given, leaves, options)

        others, names = [], tuple(_names(args))
        if len(tensors) < len(leaves):  # what is no tensor, and where it stands
            others = [(i, leaf) for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)]
        key = piece, self, names, *others, *options.items(), *setting(algo, meta), *kinds(tensors)
        assert self.cache is not None
        return compiled(self.cache, key, function, tensors, not self.vmapped), tensors

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
            with by_im2col() if self.im2col else nullcontext():
                return piece(meta, *args, **options)

        if not self.vmapped:
            return flat
        shared, args = ([t for t in tree.leaves(part) if isinstance(t, Tensor)] for part in given)
        in_dims = (*[None] * len(shared), *[0] * len(args))
        return torch.func.vmap(flat, in_dims, randomness="different")

    def numbers(self, steps: int, task: Task) -> Tensor:
        """0, 1, ..., `steps`: `[steps + 1]`, or `[steps + 1, T]` under `vmap`."""
        query = task.query
        numbers = torch.arange(steps + 1, device=query.device)
        if not self.vmapped:
            return numbers
        return numbers.unsqueeze(1).expand(steps + 1, query.shape[0]).contiguous()
