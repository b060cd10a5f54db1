"""What both peers share: what they can run, the plain module they run it on, the loop over T."""

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.functional import PureModule
from metalearn.functional.copied import copied
from metalearn.functional.norm_functions import Call, calling, fused_norms
from metalearn.functional.norms import BatchNorm
from metalearn.functional.outputs import outputs_of
from metalearn.functional.overrides import Exact
from metalearn.functional.precision import computing_in
from metalearn.inner.protocol import HasPlain, MetaAlgorithm, Plain
from metalearn.inner.rules import InnerRule
from metalearn.types import (
    Batch,
    Episodes,
    GradientAndMetrics,
    Meta,
    MetaGradients,
    Metrics,
    Params,
)

Loss = Callable[[nn.Module, Batch], tuple[Tensor, Metrics]]
"""(a module in the place of the network, batch) -> (the scalar loss, scalar metrics)."""

OneTask = Callable[[Loss, Episodes], tuple[Tensor, Metrics]]
"""(loss, one task) -> (the query loss after adaptation, with history; metrics)."""


def imported(package: str) -> ModuleType:
    """The peer's package, without the banner and the warnings of its import.

    Raises UsageError where it is not installed.
    """
    if (known := sys.modules.get(package)) is not None:
        return known
    said = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"gradient={package} needs the package {package} ({error}); "
            "run `uv sync --group peers` in a checkout of metalearn"
        ) from None


def fixed_rate(rule: InnerRule, fast: Params) -> float:
    """The rate alpha of a rule that is theta <- theta - alpha * grad, found by asking it.

    A rule is a pair of functions and shows no rate, so it is given gradients (of one number a
    weight, in float64) whose update tells. Raises UsageError for a rule that is anything else:
    learned rates, a state, minibatches, an update that is not -alpha * grad for every weight.
    """
    no = UsageError(
        "learn2learn and higher are compared on gradient descent with one fixed rate; "
        "use inner=sgd without batch_size, or gradient=adjoint"
    )
    small = {n: torch.zeros([1] * w.ndim, dtype=torch.float64) for n, w in fast.items()}
    state = rule.init(small)
    if rule.batch_size is not None or state or rule.hyper(small, 1):
        raise no

    def update(size: float, weight: float) -> Params:
        grads = {n: torch.full_like(w, size * (i + 1)) for i, (n, w) in enumerate(small.items())}
        here = {n: torch.full_like(w, weight) for n, w in small.items()}
        return rule.update(grads, state, here, {})[0]

    rate = -float(update(1.0, 0.0)[next(iter(small))])
    for size, weight in ((1.0, 0.0), (-3.0, 0.0), (1e3, 2.0)):
        for i, value in enumerate(update(size, weight).values()):
            if not torch.allclose(value, torch.full_like(value, -rate * size * (i + 1)), 1e-12, 0):
                raise no
    return rate


def plain_module(algo: Plain, meta: Meta) -> nn.Module:
    """A copy of the module that the algorithm was given, with the values in `meta`.

    Not `algo.net.module`, whose norm layers are ours: the peer runs what its users would run.
    """
    module = copied(algo.module)
    values = {**meta["buffers"], **meta["init"]}
    held = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in held:
        like = values.get(name, next(iter(meta["init"].values())))
        if name in values:
            tensor.data = like.detach().clone()
        else:
            tensor.data = tensor.data.to(like if tensor.is_floating_point() else like.device)
    return module


def check(strategy: object, algo: MetaAlgorithm, episodes: Episodes) -> Plain:
    """`algo` as a peer runs it; raises UsageError where it cannot."""
    name = type(strategy).__name__.lower()
    plain = algo.plain() if isinstance(algo, HasPlain) else None
    if plain is None or algo.transductive:
        raise UsageError(f"gradient={name} runs MAML and ANIL, not {type(algo).__name__}")
    if any(batch.weight is not None for batch in (episodes.support, episodes.query)):
        raise UsageError(f"gradient={name} knows no padding; use episodes of equal size")
    norms = [part for part in algo.net.module.modules() if isinstance(part, BatchNorm)]
    if any(norm.statistics == "support" for norm in norms):
        raise UsageError(f"gradient={name} has no norm=support; use norm=transductive")
    return plain


def adapting(algo: Plain, net: PureModule) -> str:
    """The name of the submodule that adapts; "" for the whole network.

    Raises UsageError where what adapts is no submodule.
    """
    if algo.adapting is None:
        return ""
    names, wanted = set(net.params), set(algo.adapting)
    for path, _ in net.module.named_modules():
        if {n for n in names if not path or n.startswith(f"{path}.")} == wanted:
            return path
    raise UsageError("learn2learn and higher adapt one submodule; use adaptation=all or head")


def ready(
    strategy: object, package: str, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
) -> tuple[Plain, float, ModuleType, nn.Module, str]:
    """`algo` as a peer runs it, its rate, the peer, the module, and what of that adapts. Raises
    UsageError where the peer cannot run it, or is not there."""
    plain = check(strategy, algo, episodes)
    rate = fixed_rate(plain.rule, meta["init"])
    peer = imported(package)
    return plain, rate, peer, plain_module(plain, meta), adapting(plain, algo.net)


def over_tasks(
    algo: Plain,
    net: PureModule,
    module: nn.Module,
    meta: Meta,
    episodes: Episodes,
    one_task: OneTask,
) -> GradientAndMetrics:
    """The mean gradient at the parameters of `module`, one backward pass a task.

    Attention, recurrent layers and what else torch cannot differentiate twice are those of
    `functional.overrides`, as in the strategies of this package; norms and loop are the peer's.
    """
    device, tasks = episodes.support.device, episodes.tasks
    parameters = dict(module.named_parameters())
    metrics: list[Metrics] = []

    def loss(part: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        return algo.loss(outputs_of(part(batch.x)), batch)

    exact = (calling(Call()), Exact()) if net.exact else ()
    with contextlib.ExitStack() as stack:
        for part in (torch.enable_grad(), computing_in("fp32", device), fused_norms(), *exact):
            stack.enter_context(part)
        for task in range(tasks):
            value, measured = one_task(loss, episodes.map(lambda t, task=task: t[task]))
            value.backward()
            metrics.append(measured)
    init = {
        name: torch.zeros_like(weight) if (g := parameters[name].grad) is None else g / tasks
        for name, weight in meta["init"].items()
    }
    return MetaGradients(init=init, hyper={}), tree.map(lambda *t: torch.stack(t), *metrics)
