"""The check of a network before an engine runs it, once for each."""

from typing import Any

from metalearn.engine.strategy import ForeignStrategy, Strategy
from metalearn.functional.check import check_network
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
    weights = {**meta["buffers"], **meta["init"]}
    x = episodes.support.map(lambda t: t[0]).x
    adapting = getattr(algo, "adapting", None)
    try:
        check_network(algo.net, weights, x, order(strategy, algo), batched, adapting)
    except ValueError:  # UsageError among them
        raise
    except Exception:
        return


def order(strategy: Any, algo: MetaAlgorithm) -> int:
    """How often the loss is differentiated by `torch.func`: by another package's engine, never."""
    if hasattr(strategy, "all_tasks"):
        return 0
    kind = getattr(strategy, "kind", None)  # a user's own strategy may not say
    second = strategy is not None and kind in (None, "exact", "implicit")
    return 2 if algo.steps and (second or getattr(strategy, "last", 0)) else 1
