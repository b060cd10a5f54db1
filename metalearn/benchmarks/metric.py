"""The speed of a meta-step of methods without inner steps, beside loops as users write them.

All take the mean gradient over the same T tasks from the same weights, a pass over the supports and
one over the queries a task. Before anything is timed ours is compared with the plain loop's.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms import Metric, ProtoNet
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.distance import distance
from metalearn.benchmarks.models import episodes, module
from metalearn.benchmarks.turns import in_turns
from metalearn.classifiers import Ridge
from metalearn.engine import Engine
from metalearn.engine.plan import Plan
from metalearn.functional.precision import Precision
from metalearn.gradients import Adjoint
from metalearn.types import Params

METHODS = ("protonet", "r2d2")
_SAME = 1e-3  # relative, of the whole gradient; from other orders of sums, through ReLUs

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Support features, support labels and query features of a task to logits of its queries."""


def prototypes(support: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Snell et al. 2017."""
    means = torch.stack([support[y == label].mean(0) for label in y.unique()])
    return -torch.cdist(query, means).square()


def ridge(support: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Bertinetto et al. 2019, with lambda 50 and alpha 10, which are constants here."""
    hot = F.one_hot(y).to(support.dtype)
    system = support @ support.T + 50 * torch.eye(len(support))
    return 10 * query @ (support.T @ torch.linalg.solve(system, hot))


def measure(
    cell: Cell, method: str, repeats: int = 5, coming: int | None = None
) -> list[Mapping[str, Any]]:
    """Seconds a task of every contestant, in turns; a dict each.

    coming: tasks for which our engine chooses its plan, None for many.

    Raises RuntimeError where our gradient is not the plain loop's.
    """
    net = module(cell.model)
    net.head = nn.Identity()  # features
    tasks = episodes(cell)
    algo = ProtoNet(net) if method == "protonet" else Metric(net, Ridge(), features=_features(cell))
    meta = algo.init()

    def ours(precision: Precision) -> Callable[[], Params]:
        tuner = Engine(precision=precision)
        plan = tuner.autotune(Adjoint(), algo, meta, tasks, coming).plan
        engine = tuner.with_plan(plan)
        plans[precision] = plan
        return lambda: engine(Adjoint(), algo, meta, tasks)[0]["init"]

    plans: dict[str, Plan] = {}
    made: dict[str, Callable[[], Any]] = {"ours": ours("fp32"), "ours, bf16-all": ours("bf16-all")}
    made["a plain loop"] = _loop(net, cell, prototypes if method == "protonet" else ridge)
    if method == "protonet" and (theirs := _easyfsl(net, cell)):
        made["easyfsl"] = theirs
    found = {name: run() for name, run in made.items()}
    apart = {n: distance(found[n], found["a plain loop"]) for n in ("ours", "ours, bf16-all")}
    if apart["ours"][0] > _SAME:
        raise RuntimeError(f"{cell.name}: our gradient is {apart['ours'][0]:.1e} from a plain loop")
    told = {name: {"plan": "", "cosine": None} for name in made}
    for name, precision in (("ours", "fp32"), ("ours, bf16-all", "bf16-all")):
        told[name] = {"plan": str(plans[precision]), "cosine": apart[name][1]}
    name = f"{method} {cell.model} T={cell.tasks}"
    return in_turns(name, made, cell.tasks, repeats, told)


def _features(cell: Cell) -> int:
    with torch.no_grad():
        net = module(cell.model)
        net.head = nn.Identity()
        return net(episodes(cell).support.x[0]).shape[1]


def _loop(net: nn.Module, cell: Cell, logits: Logits) -> Callable[[], Params]:
    """Backward a task, gradients added up."""
    net, (support, query, _) = copy.deepcopy(net), episodes(cell)

    def run() -> Params:
        net.zero_grad()
        for x, y, query_x, query_y in zip(support.x, support.y, query.x, query.y, strict=True):
            told = logits(net(x), y, net(query_x))
            (F.cross_entropy(told, query_y) / cell.tasks).backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    return run


def _easyfsl(net: nn.Module, cell: Cell) -> Callable[[], Any] | None:
    """Its prototypical networks, whose scores are distances and not squares; None without it."""
    try:
        from easyfsl.methods import PrototypicalNetworks
    except ImportError:
        return None
    model, (support, query, _) = PrototypicalNetworks(copy.deepcopy(net)), episodes(cell)

    def run() -> None:
        model.zero_grad()
        for x, y, query_x, query_y in zip(support.x, support.y, query.x, query.y, strict=True):
            model.process_support_set(x, y)
            (F.cross_entropy(model(query_x), query_y) / cell.tasks).backward()

    return run
