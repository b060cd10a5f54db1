"""What every classifier keeps to; a new one is one line in CLASSIFIERS."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn import classifiers
from metalearn.classifiers import Classifier
from metalearn.errors import UsageError
from metalearn.inner import adamw, meta_curvature, meta_sgd, sgd
from metalearn.types import Batch, Params
from tests.tasks import generator

SIZE, QUERIES = 4, 5
BASE = torch.rand(40, SIZE, generator=generator(7), dtype=torch.float64)
LABELS = torch.arange(40) % 4  # of the classes that the network was trained on

CLASSIFIERS = {
    "AlphaTIM": classifiers.AlphaTIM(steps=3, rate=0.05, order=2.0),
    "BDCSPN": classifiers.BDCSPN(scale=2.0),
    "Centroid": classifiers.Centroid(temperature=2.0, learn_temperature=True),
    "Cosine": classifiers.Cosine(temperature=0.4, learn_temperature=True),
    "Cosine-plain": classifiers.Cosine(temperature=0.4, of_unit_length=False),
    "DeepBDC": classifiers.DeepBDC(),
    "DeepBDC-map": classifiers.DeepBDC(channels=2, euclidean=True),
    "DistributionCalibration": classifiers.DistributionCalibration(2, ways=3).with_base(
        BASE, LABELS
    ),
    "FEAT": classifiers.FEAT(temperature=2.0, learn_temperature=True),
    "FRN": classifiers.FRN(),
    "FRN-map": classifiers.FRN(channels=2, ways=3),
    "LaplacianShot": classifiers.LaplacianShot(neighbours=2, strength=0.3, steps=4),
    "LinearProbe": classifiers.LinearProbe(meta_sgd(0.3), steps=4, ways=3),
    "LinearProbe-adamw": classifiers.LinearProbe(adamw(0.1, weight_decay=0.1), steps=3),
    "LinearProbe-batches": classifiers.LinearProbe(sgd(0.2, batch_size=2), steps=5),
    "LogisticRegression": classifiers.LogisticRegression(1.5, learn_strength=True),
    "LogisticRegression-ways": classifiers.LogisticRegression(4.0, ways=3),
    "Matching": classifiers.Matching(temperature=0.5, learn_temperature=True),
    "Matching-full-context": classifiers.Matching(full_context=True, steps=2),
    "MemberWeights": classifiers.MemberWeights(temperature=0.5).with_members([1, SIZE - 1]),
    "MemberWeights-alone": classifiers.MemberWeights(),
    "Relation": classifiers.Relation(width=3),
    "Relation-map": classifiers.Relation(channels=1, width=3, ways=3),
    "Ridge": classifiers.Ridge(regularisation=0.7, scale=3.0, bias=0.2),
    "SVM": classifiers.SVM(strength=0.7),
    "SimpleCNAPS": classifiers.SimpleCNAPS(beta=0.5, ways=3),
    "SimpleShot": classifiers.SimpleShot().with_base(BASE, LABELS),
    "SimpleShot-plain": classifiers.SimpleShot("plain"),
    "PTMAP": classifiers.PTMAP(strength=3.0, steps=3, sinkhorn=5, ways=3),
    "SoftKMeans": classifiers.SoftKMeans(2, temperature=3.0, learn_temperature=True),
    "TIM": classifiers.TIM(steps=3, rate=0.05, temperature=3.0, ways=3),
    "TIM-cosine": classifiers.TIM(steps=2, rate=0.05, similarity="cosine"),
    "TransductiveFineTuning": classifiers.TransductiveFineTuning(3, 0.05, 0.5, ways=3),
}
"""All see 3 ways at most."""
TRANSDUCTIVE = {
    *("AlphaTIM", "BDCSPN", "LaplacianShot", "PTMAP", "SoftKMeans", "TIM", "TIM-cosine"),
    "TransductiveFineTuning",
}


@pytest.fixture(params=CLASSIFIERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def classifier(name: str) -> Classifier:
    return CLASSIFIERS[name]


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, SIZE, generator=generator(seed), dtype=torch.float64)


def support(y: list[int], seed: int = 1, weight: Tensor | None = None) -> Batch:
    return Batch(features(len(y), seed) + torch.tensor(y).unsqueeze(1), torch.tensor(y), weight)


Y = [0, 2, 1, 0, 2, 0]
QUERY = features(QUERIES, 2)
UNLABELLED = Batch(features(7, 3), torch.zeros(7, dtype=torch.int64))


def answers(
    classifier: Classifier,
    given: Batch,
    query: Tensor = QUERY,
    unlabelled: Batch | None = UNLABELLED,
    hyper: Params | None = None,
) -> Tensor:
    hyper = classifier.hyper(SIZE) if hyper is None else hyper
    return classifier.logits(hyper, classifier.fit(hyper, given, unlabelled), query)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def padded(batch: Batch, label: int) -> Batch:
    """The batch with two examples of weight 0, one in front and one at the end."""
    far = torch.full((1, SIZE), 7.0, dtype=torch.float64)
    x = torch.cat([far, batch.x, -far])
    more = torch.tensor([label])
    weight = torch.cat([torch.zeros(1), torch.ones(len(batch.y)), torch.zeros(1)]).double()
    return Batch(x, torch.cat([more, batch.y, more]), weight)


def test_every_classifier_is_listed() -> None:
    public = set(classifiers.__all__) - {"Classifier"}
    assert public == {name.partition("-")[0] for name in CLASSIFIERS}


def test_the_protocol_is_whole(name: str, classifier: Classifier) -> None:
    for method in ("hyper", "fit", "logits"):
        theirs = inspect.signature(getattr(Classifier, method))
        assert [*inspect.signature(getattr(classifier, method)).parameters] == [*theirs.parameters][
            1:
        ]
    assert classifier.transductive is (name in TRANSDUCTIVE)
    hyper = classifier.hyper(SIZE)
    assert all(t.dtype == torch.float64 and not t.requires_grad for t in hyper.values())


def test_a_class_without_examples_has_the_lowest_logit(classifier: Classifier) -> None:
    logits = answers(classifier, support([2, 0, 0, 2]))
    assert logits.shape == (QUERIES, 4)
    lowest = torch.finfo(torch.float64).min
    assert (logits == lowest).any(0).tolist() == [False, True, False, True]
    assert torch.isfinite(logits).all() and (logits[:, 1] == lowest).all()


@pytest.mark.parametrize("label", [0, 5])
def test_padding_counts_for_nothing(classifier: Classifier, label: int) -> None:
    want = answers(classifier, support(Y))
    found = answers(classifier, padded(support(Y), label), unlabelled=padded(UNLABELLED, 0))
    close(found[:, : len(Y)], want)
    assert (found[:, len(Y) :] == torch.finfo(torch.float64).min).all()


@pytest.mark.parametrize(
    "name", sorted(set(CLASSIFIERS) - {"LinearProbe-batches", "Matching-full-context"})
)
def test_the_order_of_the_support_set_does_not_matter(name: str) -> None:
    """But for minibatches, which go by it, and LSTMs along it."""
    order = torch.tensor([4, 0, 5, 3, 1, 2])
    shuffled = Batch(*(t[order] for t in support(Y)[:2]))
    close(answers(CLASSIFIERS[name], shuffled), answers(CLASSIFIERS[name], support(Y)))


def test_classes_that_change_names_change_columns(classifier: Classifier) -> None:
    renamed = torch.tensor([2, 0, 1])
    given = support(Y)
    found = answers(classifier, given._replace(y=renamed[given.y]))
    close(found[:, renamed], answers(classifier, given)[:, :3])


@pytest.mark.parametrize("name", sorted(TRANSDUCTIVE))
def test_a_transductive_classifier_sees_what_is_unlabelled_in_any_order(name: str) -> None:
    classifier, order = CLASSIFIERS[name], torch.tensor([3, 0, 6, 1, 5, 2, 4])
    want = answers(classifier, support(Y), UNLABELLED.x)
    shuffled = UNLABELLED._replace(x=UNLABELLED.x[order])
    close(answers(classifier, support(Y), shuffled.x, shuffled), want[order])
    noise = UNLABELLED._replace(y=torch.tensor([2, 1, 0, 7, 2, 2, 1]))
    assert torch.equal(answers(classifier, support(Y), UNLABELLED.x, noise), want)
    assert (answers(classifier, support(Y), UNLABELLED.x, None) - want)[:, :3].abs().max() > 1e-3


@pytest.mark.parametrize("weighted", [False, True])
def test_vmap_equals_the_loop(classifier: Classifier, weighted: bool) -> None:
    tasks = [
        support(y, seed, torch.tensor(w).double() if weighted else None)
        for seed, (y, w) in enumerate(
            [(Y, [1, 1, 1, 0, 1, 1]), ([1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]), ([1] * 6, [1] * 6)]
        )
    ]
    parts = [torch.stack(t) for t in zip(*tasks, strict=True) if t[0] is not None]
    queries = torch.stack([features(QUERIES, 10 + n) for n in range(3)])
    hyper = classifier.hyper(SIZE)
    found = vmap(lambda query, *given: answers(classifier, Batch(*given), query, hyper=hyper))(
        queries, *parts
    )
    for task, query, logits in zip(tasks, queries, found, strict=True):
        close(logits, answers(classifier, task, query))


MANY = [name for name in CLASSIFIERS if getattr(CLASSIFIERS[name], "of_tasks", False)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MANY)
def test_many_tasks_at_once_equal_the_loop(name: str, weighted: bool) -> None:
    """Of unequal ways and shots; with padding also of unequal size, whose labels may be any."""
    ways = [Y, [1, 1, 0, 0, 0, 0], [2, 1, 0, 2, 1, 7 if weighted else 0], [0, 1, 2, 1, 0, 2]]
    there = torch.ones(4, 6).double()
    there[2, -1] = there[1, -2:] = 0
    weight, classifier, hyper = there if weighted else None, CLASSIFIERS[name], {}
    given = Batch(torch.stack([features(6, 30 + n) for n in range(4)]), torch.tensor(ways), weight)
    x = torch.stack([features(QUERIES, 40 + n) for n in range(4)])
    more = Batch(x, torch.zeros(4, QUERIES), there[:, 1:] if weighted else None)
    hyper = classifier.hyper(SIZE)
    with torch.no_grad():  # the queries are those that it was fitted on, and then they are others
        state = classifier.fit(hyper, given, more)
        for queries in (more.x, more.x.clone(), x + 0.1):
            found = classifier.logits(hyper, state, queries)
            for n, logits in enumerate(found):
                task, rest = given.map(lambda t, n=n: t[n]), more.map(lambda t, n=n: t[n])
                want = answers(classifier, task, queries[n], rest, hyper)[:, : logits.shape[1]]
                torch.testing.assert_close(logits, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_are_those_of_finite_differences(
    classifier: Classifier, weighted: bool
) -> None:
    given = support(Y)
    if weighted:
        given = given._replace(weight=torch.tensor([1, 1, 1, 0, 2, 1]).double())
    hyper = classifier.hyper(SIZE)

    def probabilities(x: Tensor, unlabelled: Tensor, query: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(hyper, values, strict=True))
        there = UNLABELLED._replace(x=unlabelled)
        return answers(classifier, given._replace(x=x), query, there, named)[:, :3].tanh()

    inputs = (given.x, UNLABELLED.x, QUERY, *hyper.values())
    inputs = [t.clone().requires_grad_() for t in inputs]
    # Along random directions, where a wrong entry shows too.
    torch.autograd.gradcheck(probabilities, inputs, atol=1e-7, rtol=1e-5, fast_mode=True)


def test_it_can_be_traced_and_changes_nothing(classifier: Classifier) -> None:
    if hasattr(classifier, "steps"):
        classifier = replace(classifier, steps=3)  # a trace has each of them
    given, hyper = support(Y), classifier.hyper(SIZE)
    tensors = [*given[:2], *hyper.values(), QUERY, UNLABELLED.x]
    versions = [t._version for t in tensors]
    want = answers(classifier, given)

    def traced(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        return answers(classifier, Batch(x, y), query, hyper=hyper)

    graph = make_fx(traced)(*given[:2], QUERY)
    close(graph(*given[:2], QUERY), want)
    # It is a function of the labels, not of those that it was traced with.
    other = support([1, 1, 2, 0, 0, 2], seed=8)
    close(graph(*other[:2], QUERY), answers(classifier, other))
    assert [t._version for t in tensors] == versions


def test_single_precision_stays_single(classifier: Classifier) -> None:
    hyper = {n: t.float() for n, t in classifier.hyper(SIZE).items()}
    # Adam takes the sign of a gradient that is 0 but for rounding, as a class of a third has.
    whole = support([0, 2, 0, 0, 1, 0])
    given, more = (b._replace(x=b.x.float()) for b in (whole, UNLABELLED))
    found = answers(classifier, given, QUERY.float(), more, hyper)
    assert found.dtype == torch.float32
    want = answers(classifier, whole)
    torch.testing.assert_close(found[:, :3].double(), want[:, :3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: classifiers.Centroid(0.0), "temperature=0.0 must be above 0"),
        (lambda: classifiers.Cosine(-1.0), "temperature=-1.0 must be above 0"),
        (lambda: classifiers.SoftKMeans(temperature=0.0), "temperature=0.0 must be above 0"),
        (lambda: classifiers.SoftKMeans(0), "refinements=0 must be 1 or more"),
        (lambda: classifiers.TIM(temperature=0.0), "temperature=0.0 must be above 0"),
        (lambda: classifiers.TIM(steps=-1), "steps=-1 must be 0 or more"),
        (lambda: classifiers.PTMAP(sinkhorn=0), "sinkhorn=0 must be 1 or more"),
        (lambda: classifiers.PTMAP(power=0.0), "power=0.0 must be above 0"),
        (lambda: classifiers.LaplacianShot(neighbours=0), "neighbours=0 must be 1 or more"),
        (lambda: classifiers.BDCSPN(temperature=-1.0), "temperature=-1.0 must be above 0"),
        (lambda: classifiers.Ridge(0.0), "regularisation=0.0 must be above 0"),
        (lambda: classifiers.LogisticRegression(0.0), "strength=0.0 must be above 0"),
        (lambda: classifiers.LinearProbe(meta_curvature(0.1)), "the inner rule learns matrices"),
        (lambda: classifiers.LinearProbe(steps=-1), "steps=-1 must be 0 or more"),
    ],
)
def test_mistakes(make, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()
