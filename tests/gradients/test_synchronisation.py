"""Nothing inside a meta-step waits for a device, or it could not be one CUDA graph.

The tensors are on torch's "meta" device, which has no values: to ask for one raises, as it does
where a graph is recorded; and what is copied from or to the host is counted.
"""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn import Episodes, tree
from metalearn.gradients import Implicit
from tests.gradients.test_gpu import CASES, STRATEGIES, built, episodes


class Crossings(TorchDispatchMode):
    """The operations between the host and the device; a number on the host is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, outputs)) if isinstance(t, Tensor)]
        numbers = {id(t) for t in tensors if t.device.type == "cpu" and t.ndim == 0}
        if len({t.device.type for t in tensors if id(t) not in numbers}) > 1:
            self.found.append(str(func))
        return outputs


def without_values(t: Tensor) -> Tensor:
    return t.to("meta")


@pytest.mark.parametrize("batching", ["vmap", "vmap+forward+unfold"])
@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s is not Implicit])
@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_and_nothing_is_copied(case, strategy, batching) -> None:
    algo, meta = built(case, strategy, torch.float32)
    tasks = episodes().map(lambda t: t.float() if t.is_floating_point() else t)
    strategy(batching="loop")(algo, meta, tasks)  # ANIL compares its head's outputs once
    nowhere: Episodes = tasks.map(without_values)
    meta = tree.map_meta(without_values, meta)
    with Crossings() as crossings:
        gradient, _ = strategy(batching=batching)(algo, meta, nowhere)
    assert all(t.is_meta for t in tree.leaves(gradient))
    # The seeds of dropout are drawn on the host, before what is captured.
    assert crossings.found == ["aten._to_copy.default"] * (1 if algo.net.exact else 0)


def test_a_copy_and_a_question_are_seen() -> None:
    with Crossings() as crossings:
        torch.zeros(2).to("meta")
    assert crossings.found == ["aten._to_copy.default"]
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.zeros((), device="meta") > 0)
