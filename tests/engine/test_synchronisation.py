"""Nothing inside a meta-step waits for a device, or it could not be one CUDA graph.

The tensors are on torch's "meta" device, which has no values: to ask for one raises, as it does
where a graph is recorded. What is copied between it and the host is counted, and so is what is
made there of a value on the host.
"""

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn import Episodes, tree
from metalearn.engine import Engine
from metalearn.gradients import Implicit
from tests.engine.test_gpu import CASES, STRATEGIES, built, episodes
from tests.spread import spread

KINDS = {s.__name__: s for s in STRATEGIES if s is not Implicit}

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
MAKERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class Crossings(TorchDispatchMode):
    """The operations between the host and the device. A number on the host may be a factor: it
    goes along with the call."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, outputs)) if isinstance(t, Tensor)]
        if func not in COPIES:
            tensors = [t for t in tensors if t.is_meta or t.ndim]
        if len({t.device for t in tensors}) > 1:
            self.found.append(str(func))
        return outputs


class Makers(TorchFunctionMode):
    """The tensors that are made on the device of values on the host."""

    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in MAKERS and made.is_meta:
            self.found.append(func.__name__)
        return made


def without_values(t: Tensor) -> Tensor:
    return t.to("meta")


@pytest.mark.parametrize(
    "case, kind, batching",
    spread(CASES, KINDS, ["vmap", "vmap+forward_over_reverse+im2col"], share=6),
)
def test_nothing_waits_and_nothing_is_copied(case, kind, batching) -> None:
    algo, meta = built(case, KINDS[kind], torch.float32)
    tasks = episodes().map(lambda t: t.float() if t.is_floating_point() else t)
    engine, strategy = Engine(batching), KINDS[kind]()
    engine(strategy, algo, meta, tasks)  # ANIL compares its head's outputs once
    nowhere: Episodes = tasks.map(without_values)
    meta = tree.map_meta(without_values, meta)
    with Crossings() as crossings, Makers(crossings.found):
        gradient, _ = engine(strategy, algo, meta, nowhere)
    assert all(t.is_meta for t in tree.leaves(gradient))
    # The seeds of dropout are drawn on the host, before what is captured.
    assert crossings.found == ["aten._to_copy.default"] * (1 if algo.net.exact else 0)


def test_a_copy_and_a_question_are_seen() -> None:
    with Crossings() as crossings, Makers(crossings.found):
        ready = torch.zeros(2, device="meta")
        assert not crossings.found
        torch.zeros(2).to("meta")
        torch.zeros(()).to("meta")
        torch.tensor(0.1, device="meta")
        ready.new_tensor(2.0)
    assert crossings.found == ["aten._to_copy.default"] * 2 + ["tensor", "new_tensor"]
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.zeros((), device="meta") > 0)
