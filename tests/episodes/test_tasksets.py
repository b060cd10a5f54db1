"""learn2learn's real task sets as episodes, and ours in their place."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from metalearn.episodes import FewShotEpisodes, Manifest
from metalearn.episodes.tasksets import EpisodeTasks, TasksetEpisodes
from metalearn.errors import UsageError
from metalearn.gradients.peers.base import imported

WAYS, SHOTS, QUERIES = 3, 2, 3


class Labelled(TensorDataset):
    """8 classes of 6 examples: the class in the first number, the example in the second."""

    def __init__(self):
        label = torch.arange(8).repeat_interleave(6)
        super().__init__(torch.stack([label, torch.arange(48)], 1).float(), label)

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, int(y)


@pytest.fixture(scope="module")
def taskset():
    return made()


def made(tasks: int = -1, remapped: bool = True):
    data = imported("learn2learn").data
    dataset = data.MetaDataset(Labelled())
    steps = data.transforms
    own = [
        steps.NWays(dataset, WAYS),
        steps.KShots(dataset, SHOTS + QUERIES),
        steps.LoadData(dataset),
    ]
    remap = [steps.RemapLabels(dataset), steps.ConsecutiveLabels(dataset)] if remapped else []
    return data.Taskset(dataset, own + remap, num_tasks=tasks)


def episodes(taskset, seed: int = 0) -> TasksetEpisodes:
    return TasksetEpisodes({"train": taskset}, WAYS, SHOTS, QUERIES, seed)


def test_theirs_are_episodes(taskset):
    support, query = episodes(taskset).batch("train", range(40)).parts
    assert support.x.shape == (40, WAYS * SHOTS, 2) and query.x.shape == (40, WAYS * QUERIES, 2)
    for t in range(40):
        classes = [set() for _ in range(WAYS)]
        for batch in (support, query):
            for x, y in zip(batch.x[t], batch.y[t], strict=True):
                classes[y].add(int(x[0]))
        assert all(len(found) == 1 for found in classes)  # a label is one class
        assert len(set.union(*classes)) == WAYS
        examples = torch.cat([support.x[t, :, 1], query.x[t, :, 1]])
        assert len(examples.unique()) == WAYS * (SHOTS + QUERIES)  # no query is in the support
    assert len(support.x[:, :, 0].unique()) == 8


def test_an_index_is_one_episode_and_nothing_global_moves(taskset):
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    together = episodes(taskset).batch("train", [4, 2])
    alone = episodes(taskset).batch("train", [2])
    assert torch.equal(together.query.x[1], alone.query.x[0])
    other = episodes(taskset, seed=1).batch("train", [2])
    assert not torch.equal(other.query.x, alone.query.x)
    assert random.getstate() == state[0] and np.random.get_state()[1].tolist() == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    hashes = {Manifest(episodes(taskset, seed), "train", 5).hash for seed in (0, 0, 1)}
    assert len(hashes) == 2


@pytest.mark.parametrize("tasks", [1, 4])
def test_a_finite_set_does_not_depend_on_the_order_of_drawing(tasks: int):
    """learn2learn keeps a task as it was drawn when first asked for."""
    forwards, backwards = episodes(made(tasks)), episodes(made(tasks))
    seen = [forwards.fingerprint("train", index) for index in range(8)]
    again = [backwards.fingerprint("train", index) for index in reversed(range(8))]
    assert seen == again[::-1] and (tasks > 1) == (len(set(seen)) > 1)
    assert len(set(seen)) <= tasks


def test_labels_may_be_any(taskset):
    x = episodes(made(remapped=False)).batch("train", range(6))
    assert x.support.y.tolist() == [[0, 1, 2] * SHOTS] * 6
    classes = x.query.x[:, :, 0].unflatten(1, (QUERIES, WAYS))
    assert (classes == classes[:, :1]).all() and (classes.diff(dim=2) > 0).all()


def test_another_shape_is_refused(taskset):
    with pytest.raises(UsageError, match="gives .5, 5, 5. examples a class, not 4 of 3 classes"):
        TasksetEpisodes({"train": taskset}, WAYS, SHOTS, 2).check("train")
    with pytest.raises(UsageError, match="split='val' has no task set; use train"):
        episodes(taskset).check("val")


@pytest.mark.parametrize("queries", [2, 3])
def test_ours_are_tasks(tiny, queries: int):
    source = FewShotEpisodes(tiny, WAYS, SHOTS, queries)
    tasks = EpisodeTasks(source, "train", 5)
    assert len(tasks) == len(list(tasks)) == 5
    for index, (data, labels) in enumerate(tasks):
        each = SHOTS + queries
        assert labels.tolist() == [c for c in range(WAYS) for _ in range(each)]
        support, query = source.batch("train", [index]).parts
        # As learn2learn's examples part a task with as many queries as shots.
        adapt = torch.arange(len(data)) % each
        mine = adapt % 2 == 0 if queries == SHOTS else adapt < SHOTS
        for batch, rows in ((support, mine), (query, ~mine)):
            order = batch.y[0].argsort(stable=True)
            assert torch.equal(data[rows], batch.x[0][order])
            assert torch.equal(labels[rows], batch.y[0][order])
    with pytest.raises(IndexError):
        tasks[5]
    random.seed(0)
    assert any(torch.equal(tasks.sample()[0], data) for data, _ in tasks)
