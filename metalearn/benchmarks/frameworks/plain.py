"""A loop over tasks with torch.autograd.grad and nothing else: the reference, in any dtype."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import Runner
from metalearn.benchmarks.frameworks.torch_loop import Task, runner, tasks_of
from metalearn.benchmarks.models import DISTINCT, module, user_loss

NOISE = 1e-6
"""Relative: what float32 makes of an input over a few layers."""


def backward(net: nn.Module, cell: Cell, task: Task, share: float) -> None:
    """Add `share` of the meta-gradient of one task to the gradients of `net`."""
    x, y, query_x, query_y = task
    loss = user_loss(cell.model)
    fast = dict[str, Tensor](net.named_parameters())
    for _ in range(cell.steps):
        value = loss(functional_call(net, fast, (x,)), y)
        grads = torch.autograd.grad(value, list(fast.values()), create_graph=True)
        fast = {n: w - cell.rate * g for (n, w), g in zip(fast.items(), grads, strict=True)}
    (share * loss(functional_call(net, fast, (query_x,)), query_y)).backward()


def prepare(cell: Cell, device: str) -> Runner:
    """The meta-step in float32."""
    net = module(cell.model).to(device)

    def one_task(task: Task) -> None:
        backward(net, cell, task, 1 / cell.tasks)

    return runner(net, device, one_task, tasks_of(cell, device))


def reference(
    cell: Cell, device: str, dtype: torch.dtype = torch.float64, noise: int | None = None
) -> dict[str, Tensor]:
    """The meta-gradient of the whole meta-batch, from the tasks in it that differ.

    noise: the seed of a change of every input by some roundings of float32, None for none.
    """
    net = module(cell.model).to(device, dtype)
    tasks = tasks_of(cell, device)
    generator = torch.Generator(device).manual_seed(noise or 0)

    def seen(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        t = t.to(dtype)
        if noise is not None:
            t = t * (1 + NOISE * torch.randn(t.shape, generator=generator, device=device))
        return t

    distinct = min(DISTINCT, cell.tasks)
    for i, task in enumerate(tasks[:distinct]):
        count = len(range(i, cell.tasks, distinct))
        x, y, query_x, query_y = map(seen, task)
        backward(net, cell, (x, y, query_x, query_y), count / cell.tasks)
    return {n: p.grad.cpu() for n, p in net.named_parameters() if p.grad is not None}


def flops(cell: Cell) -> int:
    """Multiplications and additions of one meta-step's products and convolutions, counted on
    tensors without data; linear in T, and in K from the counts of one and of two steps."""

    def count(steps: int) -> int:
        one = Cell(cell.model, steps, 1, cell.ways, cell.shots, cell.queries)
        net = module(cell.model).to("meta")
        with FlopCounterMode(display=False) as counter:
            backward(net, one, tasks_of(one, "meta")[0], 1.0)
        return counter.get_total_flops()

    once = count(1)
    each = count(2) - once if cell.steps > 1 else 0
    return cell.tasks * (once + (cell.steps - 1) * each)
