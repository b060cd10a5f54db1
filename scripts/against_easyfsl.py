"""Our classifiers against easyfsl's: the same features, the same episodes, side by side.

    uv sync --group bench
    uv run python -m scripts.against_easyfsl [only=TIM,PT-MAP] [overrides of metalearn compare]

By default ResNet-56 trained on CIFAR-10, CIFAR-FS, 5 ways, 1 and 5 shots, 1,000 episodes, both in
this process with one thread, in turns, and each timed twice. As it is run: from features and the
numbers of each episode's examples to accuracies; of easyfsl its `FeaturesDataset`, a `DataLoader`
and `evaluate`, as in its notebook and its script for extracted features; of ours
`evaluation.on_features.measure`. Drawing counts for neither. Bare: features in place, easyfsl's
classifiers one episode after another, ours on 250 at once. Prints a table and writes `easyfsl.md`
and `easyfsl.json` into `experiments/methods`; with `only` the rows of other methods stay there as
they were, since easyfsl's TIM and PT-MAP take minutes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metalearn import classifiers
from metalearn.benchmarks.machine import describe
from metalearn.benchmarks.report import markdown_table
from metalearn.classifiers import Classifier
from metalearn.commands.compare import setting_of
from metalearn.commands.parts.compare_plan import plan
from metalearn.engine import Engine
from metalearn.episodes import Manifest
from metalearn.evaluation import evaluate
from metalearn.evaluation.features import FeatureEpisodes, unit_length
from metalearn.evaluation.on_features import Head, classifying, measure
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import keep_freed_memory
from metalearn.types import Episodes

OUT = Path("experiments/methods")
AT_ONCE = 250  # episodes in turn
TURNS = 8  # of the two, as they are run
USUAL = (
    *("dataset=cifar_fs", "images=imagenet", "images.size=32", "backbone=cifar_resnet"),
    *("backbone.weights=DEFAULT", "methods=[nearest_centroid]", "run_dir=runs/against_easyfsl"),
)


class Pair(NamedTuple):
    """A method in both. ours: from N. theirs: its class in easyfsl, and what it takes. same: what
    had to be set for both to compute the same."""

    ours: Callable[[int], Classifier]
    theirs: str
    options: Mapping[str, Any]
    same: str
    plain: bool = False  # features as they are, not of unit length


class Silent(nn.Module):
    """In the place of easyfsl's LSTMs, which come untrained: what it adds is 0."""

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, Any]:
        """0 for both directions of a sequence, or of a cell's state."""
        half = x[:, : x.shape[1] // 2] * 0
        return (torch.cat([x, x], -1) * 0, None) if state is None else (half, half)


PAIRS: dict[str, Pair] = {
    "prototypical": Pair(
        lambda n: classifiers.Centroid(), "PrototypicalNetworks", {}, "nothing", plain=True
    ),
    "SimpleShot": Pair(
        lambda n: classifiers.Cosine(),
        "SimpleShot",
        {},
        "ours by cosine, as easyfsl; the paper's distance is Euclidean",
    ),
    "TIM": Pair(
        lambda n: classifiers.TIM(50, 1e-4, 10.0, 1.0, 0.1, similarity="cosine", ways=n),
        "TIM",
        {},
        "ours with easyfsl's values (cosine, temperature 10, weights 1, 1, 0.1, 50 steps)",
    ),
    "PT-MAP": Pair(
        lambda n: classifiers.PTMAP(steps=10, sinkhorn=60, unit_length=False, ways=n),
        "PTMAP",
        {},
        "ours with easyfsl's 10 steps, 60 Sinkhorn iterations in each, no division by the length",
    ),
    "LaplacianShot": Pair(
        lambda n: classifiers.LaplacianShot(neighbours=2),
        "LaplacianShot",
        {},
        "ours with 2 neighbours: easyfsl's knn=3 counts the query itself. Before its "
        "last change, 5 shots, torch.profiler: 24% passes over the distances, 16% the 20 products "
        "with the neighbourhoods, 10% their softmax",
    ),
    "BD-CSPN": Pair(
        lambda n: classifiers.BDCSPN(scale=1.0, shifted=False),
        "BDCSPN",
        {},
        "ours with scale 1, and queries that are classified where they were",
    ),
}
if hasattr(classifiers, "Matching"):
    PAIRS["matching"] = Pair(
        lambda n: classifiers.Matching(),
        "MatchingNetworks",
        {"support_encoder": Silent(), "query_encoder": Silent()},
        "without full context: easyfsl's LSTMs put out 0",
    )


@dataclass
class Side:
    """What one of the two did: the accuracy of each episode, and processor and wall seconds."""

    accuracies: list[float]
    seconds: float = 0.0
    wall: float = 0.0

    def add(self, run: Callable[[], list[float]]) -> None:
        """The accuracies that `run` returns, and its time."""
        wall, start = time.perf_counter(), time.process_time()
        self.accuracies += run()
        self.seconds += time.process_time() - start
        self.wall += time.perf_counter() - wall


def ours(head: Head, episodes: Episodes) -> list[float]:
    """The accuracies of all episodes, together."""
    return evaluate(*head, episodes, engine=Engine("vmap")).accuracies.tolist()


def theirs(classifier: Any, episodes: Episodes) -> list[float]:
    """The same one by one, as easyfsl's users do."""
    found = list[float]()
    support, query, _ = episodes
    with torch.no_grad():
        for x, y, q, want in zip(support.x, support.y, query.x, query.y, strict=True):
            classifier.process_support_set(x, y)
            found.append(float((classifier(q).argmax(1) == want).double().mean()))
    return found


def their_classifier(pair: Pair, features: int) -> Any:
    """Of easyfsl."""
    from easyfsl import methods  # a peer, which not everyone has

    options = dict(pair.options)
    if "query_encoder" in options:
        options["feature_dimension"] = features
    return getattr(methods, pair.theirs)(**options)


def as_run(pair: Pair, manifest: Manifest) -> tuple[Side, Side]:
    """Both from features and numbers of examples to accuracies, in turns: easyfsl on a part of the
    episodes, of which it tells the mean alone, ours on all; its time is the mean over the turns."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate as their_evaluate

    source, split, count = manifest.source, manifest.split, manifest.episodes
    assert isinstance(source, FeatureEpisodes)
    if not pair.plain:
        source = replace(source, features=nn.functional.normalize(source.features, dim=-1))
    ways, shots, queries = source.shape
    rows = list[list[int]]()
    for index in range(count):
        classes, support, query, *_ = source.source.draw(split, index)
        examples = np.concatenate([support, query], 1)
        rows.append(source.row[classes[:, None], examples].ravel().tolist())
    classes, examples = np.nonzero(source.row >= 0)
    labels = np.empty(len(source.features), int)
    labels[source.row[classes, examples]] = classes
    names = [str(n) for n in range(len(source.row))]
    data = FeaturesDataset(labels.tolist(), source.features, names)

    class Replayed(TaskSampler):
        """Its sampler, but for the episodes, which are ours."""

        def __init__(self, rows: list[list[int]]) -> None:
            # As its own, which hands torch's Sampler an argument that it no longer takes.
            self.n_way, self.n_shot, self.n_query = ways or 0, shots or 0, queries
            self.n_tasks, self.rows = len(rows), rows

        def __iter__(self) -> Iterator[list[int]]:
            return iter(self.rows)

    def their_run(part: list[list[int]]) -> list[float]:
        sampler = Replayed(part)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
        return [their_evaluate(classifier, loader, device="cpu", use_tqdm=False)]

    classifier = their_classifier(pair, source.features.shape[1])
    own, peer, head = Side([]), Side([]), classifying(pair.ours(ways or 0))
    given, part = replace(manifest, source=source), -(-count // TURNS)
    starts = range(0, count, part)
    for start in starts:
        own.add(lambda: measure(head, given).accuracies.tolist())
        peer.add(partial(their_run, rows[start : start + part]))
    turns = len(starts)
    return replace(own, seconds=own.seconds / turns, wall=own.wall / turns), peer


def _few(t: Tensor) -> Tensor:
    return t[:2]


def raced(pair: Pair, ways: int, batches: Iterator[Episodes]) -> tuple[Side, Side]:
    """Both bare on the same episodes, part by part in turns."""
    own, peer, head, classifier = Side([]), Side([]), classifying(pair.ours(ways)), None
    for part in batches:
        episodes = part if pair.plain else unit_length(part)
        if classifier is None:  # once before the clock runs
            classifier, few = their_classifier(pair, part.support.shape[-1]), part.map(_few)
            ours(head, few)
            theirs(classifier, few)
        own.add(partial(ours, head, episodes))
        peer.add(partial(theirs, classifier, episodes))
    return own, peer


def row(name: str, shots: int, own: Side, peer: Side, run: tuple[Side, Side]) -> dict[str, Any]:
    """Of the table, accuracies as fractions. own, peer: bare. run: as they are run."""
    gaps = np.abs(np.subtract(own.accuracies, peer.accuracies))
    return {
        "method": name,
        "shots": shots,
        "ours": float(np.mean(own.accuracies)),
        "easyfsl": float(np.mean(peer.accuracies)),
        "episodes": len(gaps),
        "episodes_that_differ": int((gaps > 1e-6).sum()),
        "ours_seconds": own.seconds,
        "easyfsl_seconds": peer.seconds,
        "ours_wall": own.wall,
        "easyfsl_wall": peer.wall,
        "ratio": peer.seconds / own.seconds,
        "ours_run": float(np.mean(run[0].accuracies)),
        "easyfsl_run": float(np.mean(run[1].accuracies)),
        "ours_run_seconds": run[0].seconds,
        "easyfsl_run_seconds": run[1].seconds,
        "ours_run_wall": run[0].wall,
        "easyfsl_run_wall": run[1].wall,
        "ratio_run": run[1].seconds / run[0].seconds,
    }


def main() -> None:
    """Measure, print and write."""
    import easyfsl  # noqa: F401  (told at once where it is missing)

    torch.set_num_threads(1)
    keep_freed_memory()  # as metalearn compare does; it serves both
    arguments = [a for a in sys.argv[1:] if not a.startswith("only=")]
    only = [a.removeprefix("only=") for a in sys.argv[1:] if a.startswith("only=")]
    asked = only[0].split(",") if only else [*PAIRS]
    setting = setting_of(plan([*USUAL, *arguments]))
    network, count = setting.bare(), setting.plan.config["evaluation"]["episodes"]
    rows = []
    for name, pair in ((name, PAIRS[name]) for name in asked):
        for shots in setting.shots:
            manifest = setting.features(network, shots, setting.split, count)
            found = raced(pair, manifest.source.shape[0] or 0, manifest.batches(AT_ONCE))
            rows.append(row(name, shots, *found, as_run(pair, manifest)))
            print(rows[-1], flush=True)
    manifests = {str(k): setting.images(k, setting.split, count).hash for k in setting.shots}
    command = " ".join(["uv run python -m scripts.against_easyfsl", *arguments])
    if only:
        rows = kept(json.loads((OUT / "easyfsl.json").read_text()), manifests, rows)
    made = {"command": command, "rows": rows, "manifests": manifests, "machine": describe("cpu")}
    OUT.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT / "easyfsl.json", json.dumps(made, indent=2) + "\n")
    write_atomic(OUT / "easyfsl.md", page(made, setting.dataset.name))


def kept(
    before: Mapping[str, Any], manifests: Mapping[str, str], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """`rows`, and those of other methods from `before`, which are of the same episodes."""
    if before["manifests"] != manifests:
        raise SystemExit("the episodes are not those of easyfsl.json; leave out only=")
    new = {row["method"]: [r for r in rows if r["method"] == row["method"]] for row in rows}
    old = {
        row["method"]: [r for r in before["rows"] if r["method"] == row["method"]]
        for row in before["rows"]
    }
    return [row for name in PAIRS for row in new.get(name, old.get(name, []))]


def page(made: Mapping[str, Any], dataset: str) -> str:
    """The table in Markdown, with what had to be set."""
    head = (
        "method",
        "shots",
        "ours",
        "easyfsl",
        "episodes that differ",
        *("ours s", "easyfsl s", "x"),
        *("ours bare s", "easyfsl bare s", "x"),
    )
    body = [
        (
            *(r["method"], str(r["shots"]), f"{r['ours']:.4f}", f"{r['easyfsl']:.4f}"),
            f"{r['episodes_that_differ']} of {r['episodes']:,}",
            *(f"{r['ours_run_seconds']:.2f}", f"{r['easyfsl_run_seconds']:.2f}"),
            f"{r['ratio_run']:.0f}",
            *(f"{r['ours_seconds']:.2f}", f"{r['easyfsl_seconds']:.2f}", f"{r['ratio']:.0f}"),
        )
        for r in made["rows"]
    ]
    machine = made["machine"]
    names = dict.fromkeys(r["method"] for r in made["rows"])
    told = "\n".join(f"- {name}: {PAIRS[name].same}" for name in names)
    hashes = "; ".join(f"{k}-shot {digest[:12]}" for k, digest in made["manifests"].items())
    return (
        f"# Against easyfsl 1.5 on {dataset}\n\n"
        f"`{made['command']}`: accuracy as a fraction, processor seconds of "
        f"one thread for all episodes. As they are run: from features and the numbers of each "
        f"episode's examples to accuracies, easyfsl by FeaturesDataset, DataLoader without workers "
        f"and evaluate, ours by evaluation.on_features.measure, in {TURNS} turns: easyfsl on a "
        f"part of the episodes, ours on all, whose mean is given. Bare: features in place, "
        f"easyfsl's classifiers one episode after another, ours {AT_ONCE} at once. Methods may "
        f"have been measured by themselves, with only=. {machine['cpu']}, "
        f"Python {machine['python']}. Manifests: {hashes}.\n\n"
        f"{markdown_table(head, body)}\n\n"
        f"Set so that both compute the same, on features of unit length but for prototypical:\n\n"
        f"{told}\n"
    )


if __name__ == "__main__":
    main()
