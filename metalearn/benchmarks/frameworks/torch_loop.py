"""What the torch frameworks share: the tasks one by one, and gradients left in `.grad`."""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import Runner
from metalearn.benchmarks.machine import synchronise
from metalearn.benchmarks.models import episodes

Task = tuple[Tensor, Tensor, Tensor, Tensor]
"""Support x and y, query x and y."""


def tasks_of(cell: Cell, device: str) -> list[Task]:
    """The tasks of the meta-batch, on the device."""
    support, query, _ = episodes(cell).map(lambda t: t.to(device))
    tensors: Iterator[Task] = zip(support.x, support.y, query.x, query.y, strict=True)
    return list(tensors)


def runner(net: nn.Module, device: str, one_task: Callable[[Task], None], tasks: list[Task]):
    """A meta-step that lets every task add to the gradients of `net`'s own parameters."""
    parameters = dict(net.named_parameters())

    def step() -> dict[str, Tensor | None]:
        for parameter in parameters.values():
            parameter.grad = None
        for task in tasks:
            one_task(task)
        return {name: parameter.grad for name, parameter in parameters.items()}

    return Runner(step, lambda _: synchronise(device), lambda result: result)
