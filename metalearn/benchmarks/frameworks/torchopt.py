"""TorchOpt, as in its few-shot example: MetaSGD on the module, whose weights are put back.

The example sums the losses of all tasks before one backward pass; here every task has its own,
which takes the same time and the memory of one task.
"""

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import Runner
from metalearn.benchmarks.frameworks.torch_loop import Task, runner, tasks_of
from metalearn.benchmarks.models import module, user_loss
from metalearn.gradients.peers.base import imported


def prepare(cell: Cell, device: str) -> Runner:
    """The meta-step of `torchopt.MetaSGD`."""
    torchopt = imported("torchopt")
    net, loss = module(cell.model).to(device), user_loss(cell.model)
    inner = torchopt.MetaSGD(net, lr=cell.rate)
    weights = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
    state = torchopt.extract_state_dict(inner, by="reference")

    def one_task(task: Task) -> None:
        x, y, query_x, query_y = task
        for _ in range(cell.steps):
            inner.step(loss(net(x), y))
        (loss(net(query_x), query_y) / cell.tasks).backward()
        torchopt.recover_state_dict(net, weights)
        torchopt.recover_state_dict(inner, state)

    return runner(net, device, one_task, tasks_of(cell, device))
