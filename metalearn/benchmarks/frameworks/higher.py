"""higher 0.2, as in its MAML example: innerloop_ctx, backward, a task at a time."""

import torch

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import Runner
from metalearn.benchmarks.frameworks.torch_loop import Task, runner, tasks_of
from metalearn.benchmarks.models import module, user_loss
from metalearn.gradients.peers.base import imported


def prepare(cell: Cell, device: str) -> Runner:
    """The meta-step of `higher.innerloop_ctx`."""
    higher = imported("higher")
    net, loss = module(cell.model).to(device), user_loss(cell.model)
    optimizer = torch.optim.SGD(net.parameters(), lr=cell.rate)

    def one_task(task: Task) -> None:
        x, y, query_x, query_y = task
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fast, inner):
            for _ in range(cell.steps):
                inner.step(loss(fast(x), y))
            (loss(fast(query_x), query_y) / cell.tasks).backward()

    return runner(net, device, one_task, tasks_of(cell, device))
