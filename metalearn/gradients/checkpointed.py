"""The unrolled gradient with every inner step recomputed in the backward pass."""

import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad, vjp

from metalearn.engine import plain_loop
from metalearn.engine.task import Run, Task
from metalearn.functional.torch_private import pytree
from metalearn.gradients.steps import query_loss
from metalearn.inner.loop import begun, inner_step
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.inner.rules import State
from metalearn.types import GradientAndMetrics, Kind, Meta, MetaGradients, Metrics, Params


class _Recomputed(torch.autograd.Function):
    """`call(*leaves)`, a tuple of tensors, of which only the leaves (tensors or None) are kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Callable[..., tuple[Tensor, ...]], *leaves: Tensor | None):
        return call(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *leaves = inputs
        ctx.save_for_backward(*leaves)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor):
        leaves = list(ctx.saved_tensors)
        places = [i for i in range(len(leaves)) if ctx.needs_input_grad[i + 1]]

        def moving(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = list(leaves)
            for i, t in zip(places, tensors, strict=True):
                given[i] = t
            return ctx.call(*given)

        # torch.func records the backward pass too, for derivatives that nobody asks for here:
        # the recomputed steps would stay alive, all K of them.
        with torch.no_grad():
            back = vjp(moving, *(leaves[i] for i in places))[1]
            grads: list[Tensor | None] = [None] * len(leaves)
            for i, g in zip(places, back(cotangents), strict=True):
                grads[i] = g
        return None, *grads


def recomputed(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, of which the backward pass keeps `args` alone and calls it again.

    args: trees of tensors and None; what is not among them is a constant. Exact in its first
    derivative, inside of which `function` may take others; it has no second one.
    """
    leaves, given = pytree.tree_flatten(args)
    returned: list[pytree.TreeSpec] = []
    # A CUDA backward pass runs in a thread that knows nothing of the precision set around here.
    context = contextvars.copy_context()

    def call(*leaves: Tensor | None) -> tuple[Tensor, ...]:
        result = context.run(function, *pytree.tree_unflatten(leaves, given))
        outputs, structure = pytree.tree_flatten(result)
        returned.append(structure)
        return tuple(outputs)

    outputs: Any = _Recomputed.apply(call, *leaves)
    return pytree.tree_unflatten(outputs, returned[0])


def checkpointed(algo: MetaAlgorithm, meta: Meta, task: Task) -> GradientAndMetrics:
    """One task: the gradient of the outer loss, each inner step recomputed on the way back."""
    weighted = algo.step_weights(meta) is not None

    def objective(learned: MetaGradients) -> tuple[Tensor, Metrics]:
        full = Meta(**learned, buffers=meta["buffers"])
        fast = begun(algo, full, task.given)
        state = algo.rule.init(fast)
        total: Tensor | None = None
        for number in range(algo.steps):

            def passing(meta: Meta, fast: Params, task: Task, number: int = number) -> Tensor:
                return query_loss(algo, meta, fast, task, number)[0]

            def step(
                meta: Meta, fast: Params, state: State, task: Task, number: int = number
            ) -> tuple[Params, State]:
                return inner_step(algo, meta, fast, state, task.given, number, task.seed)

            if weighted:
                loss = recomputed(passing, full, fast, task)
                total = loss if total is None else total + loss
            fast, state = recomputed(step, full, fast, state, task)
        loss, metrics = query_loss(algo, full, fast, task, algo.steps)
        return (loss if total is None else total + loss), metrics

    learned = MetaGradients(init=meta["init"], hyper=meta["hyper"])
    return grad(objective, has_aux=True)(learned)


@dataclass(frozen=True)
class Checkpointed:
    """The exact second-order meta-gradient by reverse mode, in the activations of one step.

    Between the steps only the fast weights and the rule's state are kept; the backward pass
    runs each step once more. `Adjoint` keeps the same and redoes less; this one is a single
    function of torch's automatic differentiation, and so holds for any inner step.

    Griewank, Walther: Evaluating Derivatives, 2008, chapter 12; one checkpoint a step.
    """

    kind: ClassVar[Kind] = "exact"
    __call__ = plain_loop

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """The gradient of one task's outer loss, shaped like `meta`, and its metrics."""
        return run(checkpointed, algo, meta, task)
