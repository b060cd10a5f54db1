"""The `search:` of a `study.yaml`, in the words of Hydra's sweeps, as one of Optuna's."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from metalearn.commands.building.search import distribution
from metalearn.commands.parts.study_file import Study, written
from metalearn.errors import UsageError, check_whole, nearest
from metalearn.sweeps.search import PRUNERS, SAMPLERS, Search, Searched

_KEYS = ("trials", "seed", "sampler", "pruner", "space")
_EXAMPLE = "inner.rate: interval(0.01, 0.5)"


def read_search(study: Study, path: Path) -> Search:
    """The search of a study; Hydra is on `conf/`. Raises UsageError for what it does not
    understand."""
    try:
        held = study.search or {}
        for key in held:
            if key not in _KEYS:
                raise UsageError(f"no key {key}{nearest(str(key), _KEYS)}; use {', '.join(_KEYS)}")
        trials, seed = held.get("trials", 20), held.get("seed", 0)
        check_whole("trials", trials, 1)
        check_whole("seed", seed)
        search = Search(
            study.command,
            study.overrides,
            study.seeds,
            trials,
            seed,
            _kind("sampler", held.get("sampler", "tpe"), SAMPLERS),
            _kind("pruner", held.get("pruner", "none"), PRUNERS),
            _space(held["space"]),
        )
        if search.pruner["kind"] != "none" and study.seeds[1:]:
            raise UsageError("a pruner looks at one run; give one of seeds, or pruner: none")
        search.made("sampler")
        search.made("pruner")
    except UsageError as error:
        line = str(error).removeprefix("search.")
        raise UsageError(f"{path}: search.{line}") from None
    return search


def _kind(name: str, value: Any, known: dict[str, str]) -> dict[str, Any]:
    options = value if isinstance(value, dict) else {"kind": value}
    if not isinstance(options.get("kind"), str) or options["kind"] not in known:
        raise UsageError(f"{name}={value} is not known; choose from {', '.join(known)}")
    if "seed" in options:
        raise UsageError(f"{name} takes its seed from search.seed; leave it out")
    return options


def _space(space: dict[str, Any]) -> list[Searched]:
    if not space:
        raise UsageError(f"space is empty; give it a range, as in {_EXAMPLE}")
    from optuna.distributions import distribution_to_json

    found: dict[str, Searched] = {}
    choices: dict[str, Sequence[Any]] = {}
    for name, value in space.items():
        conditional = isinstance(value, dict)
        if conditional and set(value) != {"values", "when"}:
            raise UsageError(f"space.{name} must be {{values: ..., when: {{name: value}}}}")
        when = value["when"] if conditional else {}
        if not isinstance(when, dict):
            raise UsageError(f"space.{name}.when must be a condition such as {{algorithm: maml}}")
        override = _override(name, value["values"] if conditional else value)
        kind = distribution(override)
        conditions = {}
        for other, wanted in when.items():
            own = [written(v) for v in (wanted if isinstance(wanted, list) else [wanted])]
            if other not in choices:
                raise UsageError(
                    f"space.{name}.when names {other}, which is no choice before it"
                    f"{nearest(str(other), choices)}"
                )
            if left := [v for v in own if v not in choices[other]]:
                raise UsageError(f"space.{name}.when names {other}={left[0]}, which it never is")
            conditions[other] = own
        key = override.get_key_element()
        found[key] = Searched(key, distribution_to_json(kind), conditions)
        if hasattr(kind, "choices"):
            choices[key] = kind.choices
    return list(found.values())


def _override(name: str, value: Any) -> Override:
    text = ",".join(map(written, value)) if isinstance(value, list) else str(value)
    try:
        loader = GlobalHydra.instance().config_loader()
        (override,) = OverridesParser.create(loader).parse_overrides([f"{name}={text}"])
    except HydraException as error:
        told = " ".join(str(error).split())[:160]
        raise UsageError(f"space.{name}={text} cannot be read ({told}); as in {_EXAMPLE}") from None
    if not override.is_sweep_override():
        raise UsageError(
            f"space.{name}={text} is one value; put it into overrides, or give a range"
        )
    return override


def corners(search: Search) -> Iterator[list[str]]:
    """Overrides that have every choice of the space once, and both ends of every range."""
    widths: list[int] = []

    def pick(turn: int) -> Callable[[str, Any], Any]:
        def suggest(name: str, kind: Any) -> Any:
            values = kind.choices if hasattr(kind, "choices") else (kind.low, kind.high)
            widths.append(len(values))
            return values[min(turn, len(values) - 1)]

        return suggest

    turn = 0
    while turn == 0 or turn < max(widths):
        values, _ = search.chosen(pick(turn))
        seeds = [f"seed={seed}" for seed in search.seeds[:1]]
        yield [*search.overrides, *(f"{n}={v}" for n, v in values.items()), *seeds]
        turn += 1
