"""A user's own tensors as a data set: named inputs and targets through the sampler and padding."""

import numpy as np
import pytest
import torch

from metalearn.data import DataError, TensorDataset
from metalearn.episodes import FewShotEpisodes, ImbalancedSizes, Manifest

CLASSES = torch.tensor([7, 7, 7, 2, 2, 2, 2, 5, 5, 5, 9, 9, 9])


def dataset(**changed) -> TensorDataset:
    rows = torch.arange(len(CLASSES))
    x = {"ids": rows.view(-1, 1) * 10 + torch.arange(3), "mask": (rows % 2 == 0).view(-1, 1)}
    given = {
        "x": x,
        "classes": CLASSES,
        "splits": {"train": [2, 7], "val": [5], "test": [9]},
        "targets": {"row": rows, "size": rows.float().view(-1, 1)},
    }
    return TensorDataset(**{**given, **changed})


def test_episodes_hold_the_rows_of_their_classes():
    source = FewShotEpisodes(dataset(), 2, 1, 2, seed=3)
    source.check("train")
    drawn, batch = source.draw("train", 4), source.batch("train", [4, 5])
    assert batch.support.x["ids"].shape == (2, 2, 3) and batch.query.x["mask"].shape == (2, 4, 1)
    rows = batch.support.y["row"][0]
    known = [np.flatnonzero(CLASSES.numpy() == c) for c in (2, 7)]
    assert rows.tolist() == [
        known[c][e] for c, (e,) in zip(drawn.classes, drawn.support, strict=True)
    ]
    assert batch.support.y["label"].tolist() == [[0, 1], [0, 1]]
    torch.testing.assert_close(batch.support.x["ids"][0], dataset().x["ids"][rows])
    torch.testing.assert_close(batch.query.y["size"][0, :, 0], batch.query.y["row"][0].float())
    assert batch.query.y["label"][0].tolist() == [0, 1, 0, 1]
    assert batch.support.weight is None and batch.tasks == 2


def test_one_input_and_no_further_targets_are_plain_tensors():
    batch = FewShotEpisodes(dataset(x=torch.rand(13, 4), targets={}), 1, 1, 1, seed=0).batch(
        "val", [0]
    )
    assert batch.support.x.shape == (1, 1, 4) and batch.support.y.tolist() == [[0]]


def test_unequal_tasks_are_padded_in_every_tensor():
    source = FewShotEpisodes(dataset(), 2, 2, 1, seed=0, sizes=ImbalancedSizes(1, 2, "random"))
    alone = [source.batch("train", [i]) for i in range(6)]
    together = source.batch("train", range(6))
    sizes = together.support.weight.sum(1).int().tolist()
    assert len(set(sizes)) > 1
    for t, (size, one) in enumerate(zip(sizes, alone, strict=True)):
        part = together.support.map(lambda x, t=t: x[t])
        torch.testing.assert_close(part.x["ids"][:size], one.support.x["ids"][0, :size])
        torch.testing.assert_close(part.y["row"][:size], one.support.y["row"][0, :size])
        assert not part.x["ids"][size:].any() and not part.y["size"][size:].any()


def test_a_manifest_knows_the_tensors():
    def hashed(**changed):
        return Manifest(FewShotEpisodes(dataset(**changed), 2, 1, 1, seed=0), "train", 3).hash

    x = dataset().x
    other = {**x, "ids": x["ids"] + 1}
    assert hashed() == hashed() != hashed(x=other)


@pytest.mark.parametrize(
    "changed, line",
    [
        ({"x": torch.rand(12, 2)}, r"13 classes, but tensors of \[12, 13\] examples"),
        ({"splits": {"train": [2], "val": [5]}}, r"splits are \['train', 'val'\], not"),
        ({"splits": {"train": [2, 5], "val": [5], "test": []}}, "class 5 is in two splits"),
        ({"splits": {"train": [3], "val": [], "test": []}}, "no example is of class 3"),
        ({"targets": {"label": torch.zeros(13)}}, "the target `label` is the class's"),
    ],
)
def test_what_is_refused(changed, line):
    with pytest.raises(DataError, match=line):
        dataset(**changed)


@pytest.mark.parametrize(
    "classes", [CLASSES.float(), CLASSES[:, None], CLASSES.bool(), CLASSES.tolist()], ids=str
)
def test_classes_that_are_no_whole_numbers_are_refused(classes):
    with pytest.raises(DataError, match="not whole numbers"):
        dataset(classes=classes)


def test_classes_may_be_any_whole_numbers():
    far = {7: -3, 2: 10**12, 5: 0, 9: 88}
    given = torch.tensor([far[int(c)] for c in CLASSES])
    splits = {"train": [far[2], far[7]], "val": [far[5]], "test": [far[9]]}
    here, there = (
        FewShotEpisodes(d, 2, 1, 2) for d in (dataset(), dataset(classes=given, splits=splits))
    )
    assert there.batch("train", range(5)).query.y["label"].unique().tolist() == [0, 1]
    assert there.dataset.class_names("train") == ["1000000000000", "-3"]
    assert here.dataset.sizes["train"].tolist() == there.dataset.sizes["train"].tolist()
