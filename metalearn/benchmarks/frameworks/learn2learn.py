"""learn2learn 0.2, as in its examples: clone, adapt, backward, a task at a time."""

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import Runner
from metalearn.benchmarks.frameworks.torch_loop import Task, runner, tasks_of
from metalearn.benchmarks.models import module, user_loss
from metalearn.gradients.peers.base import imported


def prepare(cell: Cell, device: str) -> Runner:
    """The meta-step of `learn2learn.algorithms.MAML`."""
    net, loss = module(cell.model).to(device), user_loss(cell.model)
    maml = imported("learn2learn").algorithms.MAML(net, lr=cell.rate)

    def one_task(task: Task) -> None:
        x, y, query_x, query_y = task
        learner = maml.clone()
        for _ in range(cell.steps):
            learner.adapt(loss(learner(x), y))
        (loss(learner(query_x), query_y) / cell.tasks).backward()

    return runner(net, device, one_task, tasks_of(cell, device))
