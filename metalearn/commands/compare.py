"""`metalearn compare`: every method in turn, each in a process of its own, then the report."""

import functools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from metalearn.commands.building.admission import admission, check_worth
from metalearn.commands.building.arguments import make
from metalearn.commands.building.episodes import read_data
from metalearn.commands.building.hydra_runs import overrides_of
from metalearn.commands.building.network import build_module, find_weights
from metalearn.commands.building.texts import check_texts, first_texts
from metalearn.commands.parts import compare_trained
from metalearn.commands.parts.compare_plan import plan
from metalearn.data import ImageDataset, TensorDataset
from metalearn.errors import UsageError
from metalearn.evaluation.comparison.curves import curves
from metalearn.evaluation.comparison.learned import of_classifier
from metalearn.evaluation.comparison.methods import METHODS, Measured
from metalearn.evaluation.comparison.plan import PROTOTYPES, Case, ComparisonPlan
from metalearn.evaluation.comparison.prototypes import prototype_tuning
from metalearn.evaluation.comparison.setting import Setting
from metalearn.evaluation.comparison.summary import conditions, show, summarised, write
from metalearn.evaluation.report import write_json
from metalearn.runtime.device import torch_device
from metalearn.runtime.files import decode_floats
from metalearn.runtime.memory import keep_freed_memory
from metalearn.tracking import JsonLines, RunInfo, Tracker, WandB
from metalearn.training.folder import check_writable, commit, held
from metalearn.training.process import Chain, Failed, Stopped, apart, guarded
from metalearn.training.stage import teller

FILE = "comparison.json"


def main(arguments: list[str], console: Console) -> None:
    """`metalearn compare [overrides]`; `--cfg job` prints the composed configuration."""
    overrides = overrides_of(arguments, "compare")
    if overrides is not None and (code := run(overrides, console)):
        sys.exit(code)


def run(overrides: Sequence[str], console: Console) -> int:
    """Compare, or go on, in the folder of the comparison; the exit code.

    1 where a method failed, after all others. Raises UsageError or DataError before anything is
    measured.
    """
    asked, say = plan(overrides), teller(console)
    check_writable(asked.folder)
    here = setting_of(asked)
    if isinstance(here.dataset, TensorDataset):
        here.module(asked.bare, here.shape)
    if admission(asked.bare) is not None:
        check_worth(
            asked.bare,
            find_weights(asked.bare),
            lambda node, given: build_module(node, here.shape, asked.config["seed"], given)[0],
            lambda count: here.images(here.shots[-1], "val", count),
            here.device,
        )
    facts = conditions(here, shlex.join(["metalearn", "compare", *overrides]))
    with held(asked.folder, asked.config, asked.config["resume"]) as folder:
        asked = asked.within(folder)
        failed: dict[str, str] = {}
        left = [m for m in asked.methods if not result_file(folder, m).exists()]
        shared = None if asked.config["isolate"] else setting_of(asked)
        if not left and (folder / FILE).exists():
            say(f"{folder} has finished before; resume=never compares anew")
            show(_read(folder / FILE), console)
            return 0
        try:
            for method, error in perform(asked, left, console, shared):
                if error is not None:
                    failed[method] = str(error)
                    say(f"{method} failed: {error}")
        except Stopped as stopped:
            say("stopped; the same command goes on from there")
            return stopped.code
        results = [_read(result_file(folder, m)) for m in asked.methods if m not in failed]
        made = summarised(asked, facts, results, failed, commit())
        write(made, results, folder)
        if results:
            _track(made, folder, asked.config)
        write_json(folder / FILE, made)
    show(made, console)
    say(f"comparison folder: {folder}")
    if failed:
        say(f"failed: {', '.join(failed)}; the same command tries them again")
    return 1 if failed else 0


def setting_of(asked: ComparisonPlan) -> Setting:
    """What the methods are measured on. Raises UsageError for what is not one set of classes."""
    data = read_data({**asked.config, "sampling": None, "augmentation": None})
    if not isinstance(data.dataset, ImageDataset | TensorDataset):
        raise UsageError("compare needs one data set with classes; see metalearn list dataset")
    if getattr(data.dataset, "scene", None) is not None:
        raise UsageError(
            f"compare is for classification, and {data.dataset.name} has pictures of several "
            "classes; use dataset=glyphs"
        )
    data.check_transform()

    @functools.cache
    def weights():
        return find_weights(asked.bare)

    def module(node: dict[str, Any], shape: tuple[int, ...]):
        found = weights() if node.get("weights") is not None else None
        made = build_module(node, shape, asked.config["seed"], found, first_texts(data.dataset))
        check_texts(made[0], data.dataset)
        return made

    device = torch_device(asked.config["device"])
    node = asked.config["augmentation"]["query"]
    how = make(node, "augmentation.query") if node else None
    return Setting(asked, data.dataset, data.transform, module, device, augmentation=how)


def result_file(folder: Path, method: str) -> Path:
    """Where the result of a method is kept once it is finished."""
    return folder / "methods" / f"{method}.json"


def perform(
    asked: ComparisonPlan, methods: Sequence[str], console: Console, shared: Setting | None = None
) -> Iterator[tuple[str, Failed | None]]:
    """Measure the methods, and keep their results; yields each with why it failed. Raises Stopped.

    Training is a process apart: what it used does not count when adapting is measured.
    shared: for methods that are measured in this process.
    """
    jobs, say, place = asked.config["jobs"], teller(console), asked.folder / "methods"

    def begin(method: str) -> None:
        say(f"{method} ({asked.methods.index(method) + 1} of {len(asked.methods)})")

    def acts(method: str) -> list[Callable[[], None]]:
        measure = functools.partial(_measure, asked, method, shared)
        if method not in asked.runs:
            return [measure]
        told = console if shared else None  # it cannot be sent to another process
        return [functools.partial(compare_trained.train, asked.runs[method], told), measure]

    if shared is None:
        if jobs > 1:
            say(f"{jobs} methods at a time; what each prints goes to {place}/<method>.log")
        logs = {m: place / f"{m}.log" if jobs > 1 else None for m in methods}
        chains = {m: Chain(acts(m), place / f".{m}.failed", logs[m]) for m in methods}
        yield from apart(chains, jobs, begin)
        return
    for method in methods:
        begin(method)
        try:
            for act in acts(method):
                guarded(act)
        except Failed as error:
            yield method, error
        else:
            yield method, None


def _measure(asked: ComparisonPlan, method: str, shared: Setting | None) -> None:
    started = time.monotonic()
    keep_freed_memory()
    here = shared or setting_of(asked)
    drawn = asked.config["sampling"]["queries"]
    measured = [_measured(here.drawing(queries), method) for queries in drawn]
    drawings = _curves(here, measured[0])
    found = [one.plain() for one in measured]
    shots = {
        Case(int(number), queries).key: one
        for queries, own in zip(drawn, found, strict=True)
        for number, one in own["shots"].items()
    }
    result = {
        "method": method,
        "family": asked.family(method),
        **found[0],
        "shots": shots,
        "curves": drawings,
        "seconds": time.monotonic() - started,
        "commit": commit(),
    }
    write_json(result_file(asked.folder, method), result)


def _curves(setting: Setting, measured: Measured) -> dict[str, Any]:
    config = setting.plan.config
    if not (config["sparsity"] or config["robustness"]):
        return {}
    if measured.subject is None:
        measured.notes.append("no curve: it is no network whose weights stay while a task adapts")
        return {}
    return curves(setting, measured.subject)


def _measured(setting: Setting, method: str) -> Measured:
    if (node := setting.plan.config["classifiers"].get(method)) is not None:
        told = ", ".join(f"{k} {v}" for k, v in node.items() if k != "_target_" and v is not None)
        name = node["_target_"].rpartition(".")[2]
        classifier = make(node, f"classifiers.{method}")
        return of_classifier(setting, classifier, f"{name}{f': {told}' if told else ''}")
    if method in PROTOTYPES:
        return prototype_tuning(setting, method)
    own = METHODS.get(method)
    return own(setting) if own else compare_trained.measure(setting, method)


def _track(made: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    columns = [name for name in made["rows"][0] if name != "shared_episodes"]
    with Tracker([JsonLines(), WandB.of(config["tracker"])]) as tracker:
        tracker.start(RunInfo(folder.name, folder, dict(config), made["commit"], made["seed"], 0))
        rows = [[row[name] for name in columns] for row in made["rows"]]
        tracker.table("comparison", columns, rows)
        for row in made["rows"]:
            name = f"{row['method']}/accuracy_{Case(row['shots'], row['queries']).key}shot"
            tracker.summary({name: row["accuracy"]})


def _read(path: Path) -> dict[str, Any]:
    try:
        return decode_floats(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        use = "remove it, and the same command makes it again"
        raise UsageError(f"{path} is damaged ({error}); {use}") from None
