"""The check of a network before an engine runs it, once for each."""

from typing import Any

from metalearn.engine.batching import default_plan
from metalearn.engine.plan import Plan
from metalearn.engine.strategy import ForeignStrategy, Strategy
from metalearn.errors import UsageError
from metalearn.functional.double_backward import check_network, has_passed, pass_over
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Meta


def check_run(
    strategy: Strategy | ForeignStrategy | None,
    algo: MetaAlgorithm,
    meta: Meta,
    episodes: Episodes,
    batched: bool,
) -> None:
    """Raise UsageError where the network of `algo` is not one that `strategy`, None for evaluation,
    can differentiate, with the name of the layer.

    batched: under `vmap`. Where an algorithm hands its network other inputs than an episode has,
    their errors are left to the run.
    """
    net, times = algo.net, order(strategy, algo)
    if has_passed(net, times, batched, episodes.support.device):
        return
    weights = {**meta["buffers"], **meta["init"]}
    x = episodes.support.map(lambda t: t[0]).x
    try:
        check_network(net, weights, x, times, batched, getattr(algo, "adapting", None))
    except ValueError:  # UsageError among them
        raise
    except Exception:
        pass_over(net, times, batched, episodes.support.device)


def order(strategy: Any, algo: MetaAlgorithm) -> int:
    """How often the loss is differentiated by `torch.func`: by another package's engine, never."""
    if hasattr(strategy, "all_tasks"):
        return 0
    kind = getattr(strategy, "kind", None)  # a user's own strategy may not say
    second = strategy is not None and kind in (None, "exact", "implicit")
    return 2 if algo.steps and (second or getattr(strategy, "last", 0)) else 1


def check_foreign(strategy: object, precision: str, loops: bool) -> None:
    """Raise UsageError where a strategy that runs T tasks itself cannot run as asked. loops:
    whether the batching may be a loop."""
    name = type(strategy).__name__.lower()
    if precision != "fp32":
        raise UsageError(f"gradient={name} has no precision={precision}; use fp32")
    if not loops:
        raise UsageError(f"gradient={name} loops over tasks; use batching=auto or loop")


def unmeasured(
    strategy: Strategy | None, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
) -> tuple[Plan, str]:
    """The plan where nothing is measured, and why it is a loop where `vmap` would be usual.

    strategy: None for evaluation.
    """
    plan = default_plan(episodes.support.device)
    try:
        if plan.tasks is not None:
            check_run(strategy, algo, meta, episodes, True)
    except UsageError as error:
        return Plan(), f"; {error}"
    return plan, ""
