"""Checkpoints hold every kind of state, and hold exactly it."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from metalearn.training.checkpoint import (
    generator_states,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    restore_generators,
    save_checkpoint,
)


def equal(a: object, b: object) -> bool:
    """Equality of value and type, all the way down; tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and a.detach()
            .contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(b.view(-1).view(torch.uint8))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)  # type: ignore[index]
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))  # type: ignore[arg-type]
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)  # type: ignore[arg-type]
    return a == b


STATES = {
    "plain": {"a": 1, "b": True, "c": None, "d": 0.1, "e": "text", "f": -(2**70), "g": 1e-320},
    "not_finite": {"nan": math.nan, "inf": math.inf, "low": -math.inf},
    "lists_and_tuples": {"a": [], "b": (), "c": [1, (2, [3.0, ()])], "d": ([],)},
    "dicts": {"a": {}, "b": {"c": {"d": {}}}},
    "keys": {0: "a", 1: {2: "b"}, "1": "c", 2.5: [], None: 3},
    "falsy": {False: 0, "": 1},
    "counter": {"milestones": Counter({1: 1, 3: 2}), "empty": Counter()},
    "dollar": {"a": {"$list": 3}, "b": {"$tensor": "x"}, "c": {"$counter": [], "d": 1}},
}


@pytest.mark.parametrize("name", STATES)
def test_plain_values_come_back(name, tmp_path) -> None:
    path = save_checkpoint(tmp_path, 3, STATES[name])
    assert path == tmp_path / "step-00000003"
    assert equal(load_checkpoint(path), STATES[name])


DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]


def test_tensors_come_back_bit_by_bit(tmp_path) -> None:
    g = torch.Generator().manual_seed(0)
    state = {
        dtype: (100 * torch.randn(3, 5, generator=g)).to(getattr(torch, dtype)) for dtype in DTYPES
    }
    state |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "special": torch.tensor([math.nan, math.inf, -0.0, 1e-45]),
        "nested": {0: {"step": torch.tensor(7.0), "moments": [torch.ones(2), (torch.zeros(1),)]}},
    }
    assert equal(load_checkpoint(save_checkpoint(tmp_path, 0, state)), state)


def test_views_parameters_and_shared_storage(tmp_path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    parameter = nn.Parameter(torch.ones(2))
    state = {
        "whole": whole,
        "again": whole,
        "row": whole[1],
        "transposed": whole.T,
        "strided": whole[:, ::2],
        "expanded": torch.ones(1).expand(4),
        "parameter": parameter,
        "history": parameter * 2,
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, 0, state))
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor), name
        assert not loaded[name].requires_grad
    loaded["whole"].zero_()
    assert torch.equal(loaded["again"], whole), "what was saved twice is two tensors again"


def test_names_that_could_be_mistaken_for_one_another(tmp_path) -> None:
    state = {
        "a/b": torch.tensor(1.0),
        "a": {"b": torch.tensor(2.0), 0: torch.tensor(3.0), "0": torch.tensor(4.0)},
        "": {"": torch.tensor(5.0)},
        "/": torch.tensor(6.0),
    }
    assert equal(load_checkpoint(save_checkpoint(tmp_path, 0, state)), state)


def test_the_state_that_was_saved_stays_as_it_was(tmp_path) -> None:
    weight = torch.ones(3)
    path = save_checkpoint(tmp_path, 0, {"weight": weight})
    weight.zero_()
    assert torch.equal(load_checkpoint(path)["weight"], torch.ones(3))


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"outer": {"schedule": {"f": math.sin}}}, "/outer/schedule/f is a builtin_function"),
        ({"a": [1, {"b": {1, 2}}]}, "/a/1/b is a set"),
        ({"a": ({"n": np.int64(3)},)}, "/a/0/n is a int64"),
        ({"a": {3: b"bytes"}}, "/a/3 is a bytes"),
        ({"a": {"b": {(1, 2): 3}}}, "/a/b has (1, 2) as a key"),
    ],
)
def test_what_cannot_be_held_is_named(state, line, tmp_path) -> None:
    save_checkpoint(tmp_path, 1, {"good": 1})
    with pytest.raises(TypeError) as caught:
        save_checkpoint(tmp_path, 2, state)
    assert str(caught.value).startswith(line)
    assert latest_checkpoint(tmp_path) == {"good": 1}


def test_the_record_is_readable_text(tmp_path) -> None:
    path = save_checkpoint(tmp_path, 12, {"seed": 3, "weight": torch.ones(2)})
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "tensors.safetensors"]
    record = json.loads((path / "state.json").read_text())
    assert record["step"] == 12 and record["state"]["seed"] == 3


def steps(folder) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (2, None, [80, 100]),
        (2, 40, [40, 80, 100]),
        (2, 100, [80, 100]),
        (1, 0, [100]),
        (3, 20, [20, 60, 80, 100]),
        (9, 20, [20, 40, 60, 80, 100]),
    ],
)
def test_pruning_keeps_the_newest_and_the_best(keep, best, left, tmp_path) -> None:
    for step in (100, 20, 60, 40, 80):
        save_checkpoint(tmp_path, step, {"step": step})
    prune_checkpoints(tmp_path, keep, also=best)
    assert steps(tmp_path) == left
    assert latest_checkpoint(tmp_path) == {"step": 100}
    for step in left:
        assert load_checkpoint(tmp_path / f"step-{step:08d}") == {"step": step}


def test_saving_a_step_again_replaces_it(tmp_path) -> None:
    save_checkpoint(tmp_path, 5, {"old": torch.ones(2), "n": 1})
    save_checkpoint(tmp_path, 5, {"n": 2})
    assert latest_checkpoint(tmp_path) == {"n": 2}
    assert steps(tmp_path) == [5]


def test_nothing_there(tmp_path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None


def test_generators_go_on_where_they_were(tmp_path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        torch.rand(7)
        path = save_checkpoint(tmp_path, 0, generator_states())
        want = torch.rand(20)
        torch.manual_seed(6)
        assert not torch.equal(torch.rand(20), want)
        restore_generators(load_checkpoint(path))
        assert torch.equal(torch.rand(20), want)
