"""Episodes are drawn uniformly: chi-square tests, and that they would see a biased sampler."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from metalearn.data import ImageDataset, cifar_fs, data_folder, omniglot
from metalearn.episodes import FewShotEpisodes
from metalearn.episodes.gather import EpisodeIds
from tests.images import tiny_dataset

LEVEL = 1e-3
WAYS, SHOTS, QUERIES = 3, 2, 2
Draw = Callable[[int], EpisodeIds]


@dataclass(frozen=True)
class Drawn:
    """Many episodes of one split. classes `[E, N]`, support `[E, N, K]`, query `[E, N, Q]`;
    count: how many classes the split has; sizes `[C]`: how many examples each has."""

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray
    count: int
    sizes: np.ndarray


def drawn(source: FewShotEpisodes, split: str, episodes: int, draw: Draw | None = None) -> Drawn:
    draw = draw or (lambda index: source.draw(split, index))
    parts = zip(*(draw(index)[:3] for index in range(episodes)), strict=True)
    count = source.dataset.class_count(split)
    sizes = source.dataset.examples_in(split, np.arange(count))
    return Drawn(*map(np.stack, parts), count, sizes)


def uniform(cells: np.ndarray, count: int) -> float:
    """p-value that `cells` (numbers below `count`), drawn independently, are uniform."""
    counts = np.bincount(cells.reshape(-1), minlength=count)
    assert len(counts) == count and counts.sum() > 10 * count
    return float(chisquare(counts).pvalue)


def without_replacement(chosen: np.ndarray, count: int) -> float:
    """p-value that the rows of `chosen` [E, n] are n of `count` each, drawn at random.

    The n of one row exclude one another, so that the count of a cell varies less than a
    multinomial one: its variance is E n/C (1 - n/C) and not E n/C (1 - 1/C). The statistic over
    (1 - n/C) C/(C - 1) is again chi-square with C - 1 degrees of freedom; unscaled the test
    would be blind to what it is for, and with n = C there is nothing to test.
    """
    episodes, each = chosen.shape
    counts = np.bincount(chosen.reshape(-1), minlength=count)
    assert each < count == len(counts) and counts.sum() > 10 * count
    scale = (1 - each / count) * count / (count - 1)
    # Scaled by way of the counts: chisquare itself has no such factor.
    expected = np.full(count, episodes * each / count)
    return float(chisquare(expected + (counts - expected) / np.sqrt(scale), expected).pvalue)


def classes(d: Drawn) -> float:
    """How often each class comes up, at any place of the episode."""
    return without_replacement(d.classes, d.count)


def first(d: Drawn) -> float:
    """The class at place 0: one of an episode, so independent."""
    return uniform(d.classes[:, 0], d.count)


def last(d: Drawn) -> float:
    """The class at the last place."""
    return uniform(d.classes[:, -1], d.count)


def places(d: Drawn) -> float:
    """The place that a class takes where it comes up: one class alone, so independent."""
    return uniform(np.nonzero(d.classes == d.count // 2)[1], d.classes.shape[1])


def pairs(d: Drawn) -> float:
    """The two classes at the first two places, whatever their order."""
    low, high = np.sort(d.classes[:, :2], axis=1).T
    return uniform(high * (high - 1) // 2 + low, d.count * (d.count - 1) // 2)


def support(d: Drawn) -> float:
    """The support examples of every class, among classes of one size."""
    return examples(d, d.support)


def query(d: Drawn) -> float:
    """The query examples of every class, among classes of one size."""
    return examples(d, d.query)


def examples(d: Drawn, part: np.ndarray) -> float:
    size = d.sizes[0]
    return without_replacement(part[d.sizes[d.classes] == size], int(size))


def first_example(d: Drawn) -> float:
    """Which example is the first shot."""
    size = d.sizes[0]
    return uniform(d.support[d.sizes[d.classes] == size, 0], int(size))


TESTS = (classes, first, last, places, pairs, support, query, first_example)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FewShotEpisodes:
    dataset = tiny_dataset(tmp_path_factory.mktemp("uniform"))
    return FewShotEpisodes(dataset, WAYS, SHOTS, QUERIES, seed=0)


@pytest.fixture(scope="module")
def ours(source: FewShotEpisodes) -> Drawn:
    return drawn(source, "train", 12_000)


@pytest.mark.parametrize("test", TESTS)
def test_draws_are_uniform(ours: Drawn, test: Callable[[Drawn], float]) -> None:
    assert test(ours) > LEVEL


def test_every_class_has_its_own_examples(ours: Drawn) -> None:
    """Within each class alone, and the support set apart from the queries."""
    p = [
        without_replacement(part[ours.classes == c], int(ours.sizes[c]))
        for c in range(ours.count)
        for part in (ours.support, ours.query)
    ]
    assert min(p) * len(p) > LEVEL  # the smallest of 40


def test_the_scaled_statistic_is_a_chi_square() -> None:
    """Its p-values are uniform over seeds; without the factor they crowd at 1."""
    rng = np.random.default_rng(0)
    p = [without_replacement(rng.random((200, 6)).argsort(axis=1)[:, :4], 6) for _ in range(2000)]
    assert chisquare(np.histogram(p, 10, (0, 1))[0]).pvalue > LEVEL


def biased(source: FewShotEpisodes, how: str) -> Draw:
    """The draws of `source`, with one fault in some of them."""

    def draw(index: int) -> EpisodeIds:
        ids = source.draw("train", index)
        chance = np.random.default_rng(index).random()
        if how == "class" and chance < 0.1 and 7 not in ids.classes:
            return ids._replace(classes=np.array([7, *ids.classes[1:]]))
        if how == "order" and chance < 0.3:
            return ids._replace(classes=np.sort(ids.classes))
        if how == "pair" and chance < 0.05:
            return ids._replace(classes=np.array([3, 4, *ids.classes[2:]]))
        if how == "support" and chance < 0.1:
            return ids._replace(support=np.sort(ids.support) // 2 * 2)
        if how == "query" and chance < 0.1:
            return ids._replace(query=np.arange(ids.query.size).reshape(ids.query.shape) % 2)
        return ids

    return draw


SEEN = {
    "class": (classes, first),
    "order": (first, last, places),
    "pair": (pairs,),
    "support": (support, first_example),
    "query": (query,),
}


@pytest.mark.parametrize("how", SEEN)
def test_a_biased_sampler_is_rejected(source: FewShotEpisodes, how: str) -> None:
    faulty = drawn(source, "train", 12_000, biased(source, how))
    for test in SEEN[how]:
        assert test(faulty) < LEVEL, test.__name__


REAL = {"omniglot": (omniglot, 20_000), "cifar_fs": (cifar_fs, 4_000)}


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest, data_cache: Path) -> Drawn:
    """Test episodes of a real data set, 5-way 1-shot with 15 queries."""
    make, episodes = REAL[request.param]
    folder = data_folder()
    place = {"omniglot": "omniglot", "cifar_fs": "cifar100"}[request.param]
    if folder is None or not (folder / place).is_dir():
        pytest.skip(f"no real {request.param}: neither METALEARN_DATA nor ../shared/data holds it")
    dataset: ImageDataset = make(data_cache)
    return drawn(FewShotEpisodes(dataset, 5, 1, 15, seed=1), "test", episodes)


@pytest.mark.parametrize("test", [classes, first, last, places, support, query])
def test_draws_of_real_data_are_uniform(real: Drawn, test: Callable[[Drawn], float]) -> None:
    assert test(real) > LEVEL
