"""What a study searches: a space, how it is searched, and how many trials it gets."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.errors import UsageError
from metalearn.runtime.files import write_atomic
from metalearn.sweeps.plan import SEARCH

SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "gp": "GPSampler"}
PRUNERS = {"none": "NopPruner", "asha": "SuccessiveHalvingPruner", "median": "MedianPruner"}
_DEFAULTS = {
    "tpe": {"constant_liar": True},  # of trials that run elsewhere the worst is thought
    "asha": {"min_resource": 1, "reduction_factor": 3},
}


@dataclass(frozen=True)
class Searched:
    """One name of a space. distribution: of Optuna's, in its JSON. when: it is searched only where
    names before it have one of these values."""

    name: str
    distribution: str
    when: dict[str, list[Any]]


@dataclass(frozen=True)
class Search:
    """What `search.json` holds. overrides: of every run. seeds: of each trial's runs, whose scores
    are averaged; none for the configuration's own. seed: of the sampler. sampler, pruner: `kind`
    and options of Optuna's."""

    command: str
    overrides: list[str]
    seeds: list[int]
    trials: int
    seed: int
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    space: list[Searched]

    def made(self, kind: str, slot: int = 0) -> Any:
        """The `sampler` for trial `slot`, or the `pruner`.

        A sampler is made for every trial, with a seed of its own: so the search knows no state that
        a killed worker would take with it.
        """
        import optuna

        options = {**getattr(self, kind)}
        name = options.pop("kind")
        module, names = {
            "sampler": (optuna.samplers, SAMPLERS),
            "pruner": (optuna.pruners, PRUNERS),
        }[kind]
        options = {**_DEFAULTS.get(name, {}), **options}
        if kind == "sampler":
            options["seed"] = int(np.random.SeedSequence([self.seed, slot]).generate_state(1)[0])
        try:
            return getattr(module, names[name])(**options)
        except (TypeError, ValueError) as error:
            raise UsageError(f"search.{kind} {name}: {' '.join(str(error).split())}") from None

    def chosen(self, suggest: Callable[[str, Any], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and their distributions, by name; `suggest` chooses each."""
        from optuna.distributions import json_to_distribution

        values: dict[str, Any] = {}
        kinds: dict[str, Any] = {}
        for one in self.space:
            if all(values.get(name) in wanted for name, wanted in one.when.items()):
                kinds[one.name] = json_to_distribution(one.distribution)
                values[one.name] = suggest(one.name, kinds[one.name])
        return values, kinds


def write_search(study: Path, search: Search) -> None:
    """Keep it in the folder. Raises UsageError where that searches something else; only the number
    of trials may be another."""
    if (study / SEARCH).exists():
        before, now = asdict(read_search(study)), asdict(search)
        if changed := [n for n in now if n != "trials" and now[n] != before[n]]:
            raise UsageError(f"{study} is a search with another {changed[0]}; name another folder")
    write_atomic(study / SEARCH, json.dumps(asdict(search), indent=1) + "\n")


def read_search(study: Path) -> Search:
    """Raises UsageError where it is damaged."""
    try:
        held = json.loads((study / SEARCH).read_text(encoding="utf-8"))
        return Search(**{**held, "space": [Searched(**one) for one in held["space"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{study / SEARCH} is damaged ({error}); remove it, and plan the study again"
        ) from None
