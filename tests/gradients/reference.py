"""The meta-gradient by a plain float64 loop over tasks: ordinary modules, torch.autograd.grad.

Nothing here comes from metalearn, so that agreement with it is evidence.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE = 0.2

Rates = Callable[[dict[str, Tensor], str, int], Tensor | float]
"""(hyper, name of a weight, step) -> the rate that it takes there."""


def fixed(hyper: dict[str, Tensor], name: str, step: int) -> float:
    return RATE


def per_weight(hyper: dict[str, Tensor], name: str, step: int) -> Tensor:
    return hyper["rate." + name]


def per_layer_and_step(hyper: dict[str, Tensor], name: str, step: int) -> Tensor:
    rates = hyper["rate." + ".".join(name.split(".")[:-1])]
    return rates[min(step, len(rates) - 1)]


class SupportNorm(nn.BatchNorm2d):
    """Batch norm that treats queries by the statistics of the last support batch."""

    judging = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.judging:
            self.mean = x.mean((0, 2, 3), keepdim=True)
            self.var = ((x - self.mean) ** 2).mean((0, 2, 3), keepdim=True)
        shape = (1, -1, 1, 1)
        normal = (x - self.mean) / (self.var + self.eps).sqrt()
        return normal * self.weight.view(shape) + self.bias.view(shape)


class PlainConv4(nn.Module):
    """Conv-4 of torch's own layers, with the parameter names of metalearn's."""

    def __init__(self, norm: str, downsample: str, ways: int, filters: int):
        super().__init__()
        blocks: list[nn.Module] = []
        for block in range(4):
            stride = 2 if downsample == "stride" else 1
            blocks.append(nn.Conv2d(filters if block else 1, filters, 3, stride, padding=1))
            blocks.append(
                {
                    "transductive": lambda: nn.BatchNorm2d(filters, track_running_stats=False),
                    "support": lambda: SupportNorm(filters, track_running_stats=False),
                    "running": lambda: nn.BatchNorm2d(filters).eval(),
                    "group": lambda: nn.GroupNorm(8 if filters % 8 == 0 else 1, filters),
                    "none": lambda: nn.Identity(),
                }[norm]()
            )
            blocks.append(nn.ReLU())
            if downsample == "pool":
                blocks.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(filters, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def call(net: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The module's output with `weights` in the place of its parameters, tied ones at each."""
    named = {id(p): weights[name] for name, p in net.named_parameters() if name in weights}
    places = [
        (part._parameters, key, parameter)
        for part in net.modules()
        for key, parameter in part._parameters.items()
        if id(parameter) in named
    ]
    for parameters, key, parameter in places:
        parameters[key] = named[id(parameter)]
    try:
        return net(x)
    finally:
        for parameters, key, parameter in places:
            parameters[key] = parameter


def adapted(
    net: nn.Module,
    init: dict[str, Tensor],
    hyper: dict[str, Tensor],
    support: tuple[Tensor, Tensor],
    steps: int,
    rates: Rates,
    adapts: Callable[[str], bool],
    loss: Callable[[Tensor, Tensor], Tensor],
    second_order: bool,
    batch_size: int | None,
    last: int | None = None,
) -> dict[str, Tensor]:
    """The weights of one task after `steps` steps of hand-written gradient descent.

    last: the steps at the end whose gradients keep their history; None for all.
    """
    x, y = support
    fast = dict(init)
    names = [name for name in init if adapts(name)]
    for step in range(steps):
        rows = list(range(len(x)))
        if batch_size is not None:
            rows = [(step * batch_size + i) % len(x) for i in range(batch_size)]
        value = loss(call(net, fast, x[rows]), y[rows])
        weights = [fast[name] for name in names]
        history = second_order and (last is None or step >= steps - last)
        grads = torch.autograd.grad(value, weights, create_graph=history)
        for name, grad in zip(names, grads, strict=True):
            fast[name] = fast[name] - rates(hyper, name, step) * grad
    return fast


def outer_loss(
    net: nn.Module,
    init: dict[str, Tensor],
    hyper: dict[str, Tensor],
    episodes,
    steps: int,
    rates: Rates = fixed,
    adapts: Callable[[str], bool] = lambda name: True,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    second_order: bool = True,
    batch_size: int | None = None,
    last: int | None = None,
) -> Tensor:
    """The mean over tasks of the query loss after adaptation, with history."""
    losses = []
    for t in range(len(episodes.support.x)):
        support = episodes.support.x[t], episodes.support.y[t]
        fast = adapted(
            net, init, hyper, support, steps, rates, adapts, loss, second_order, batch_size, last
        )
        norms = [m for m in net.modules() if isinstance(m, SupportNorm)]
        if norms:
            call(net, fast, support[0])
        for norm in norms:
            norm.judging = True
        outputs = call(net, fast, episodes.query.x[t])
        for norm in norms:
            norm.judging = False
        losses.append(loss(outputs, episodes.query.y[t]))
    return torch.stack(losses).mean()


def meta_gradient(net: nn.Module, hyper: dict[str, Tensor], episodes, steps: int, **how) -> dict:
    """The gradient of `outer_loss` for the trainable weights of `net` and for `hyper`."""
    init = {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}
    init = {n: p.requires_grad_() for n, p in init.items()}
    hyper = {n: t.detach().clone().requires_grad_() for n, t in hyper.items()}
    value = outer_loss(net, init, hyper, episodes, steps, **how)
    learned = [*init.values(), *hyper.values()]
    grads = torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=True)
    return {
        "init": dict(zip(init, grads[: len(init)], strict=True)),
        "hyper": dict(zip(hyper, grads[len(init) :], strict=True)),
    }
