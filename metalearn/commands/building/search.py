"""`-m hydra/sweeper=optuna`: a search by Optuna, which asks for values and is told their score.

Every trial is one member of a sweep, or one for each of `seed=0,1,...`, whose scores are averaged.
With `hydra.sweeper.storage` and `study_name` a study is kept: the same command goes on with it.
"""

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from metalearn.commands.building.arguments import make
from metalearn.errors import UsageError
from metalearn.runtime.files import write_atomic

RESULTS = "optimization_results.yaml"
_AVERAGED = "seed"
_GOES_ON = "the same command goes on with this study"
_STARTS_AGAIN = (
    "the same command begins another; to go on with one, give it hydra.sweeper.study_name=<name> "
    "and hydra.sweeper.storage=sqlite:///<file>.db"
)
_OWNER = "process"  # an attribute of a trial: the host and the process that runs it


@dataclass
class SearchSettings:
    """The options `hydra.sweeper.*` of `hydra/sweeper=optuna`.

    n_trials: of the whole study. n_jobs: of them that the launcher gets at a time. params: more of
    the search space, as on the command line. direction: fixed, a run returns what is maximised.
    """

    _target_: str = "hydra_plugins.metalearn_optuna.OptunaSweeper"
    _recursive_: bool = False  # the sampler is made here
    n_trials: int = 20
    n_jobs: int = 1
    direction: str = "maximize"
    storage: str | None = None
    study_name: str | None = None
    sampler: Any = field(
        default_factory=lambda: {"_target_": "optuna.samplers.TPESampler", "seed": None}
    )
    params: Any = None


@dataclass(frozen=True)
class Space:
    """What is searched, by name a distribution of Optuna's; the seeds that each trial is run with;
    and the overrides that every run gets."""

    searched: dict[str, Any]
    seeds: list[str]
    fixed: list[str]

    def jobs(self, values: dict[str, Any]) -> list[list[str]]:
        """The overrides of the runs of one trial."""
        chosen = [f"{name}={_written(value)}" for name, value in values.items()]
        seeds = [[f"{_AVERAGED}={seed}"] for seed in self.seeds] or [[]]
        return [[*self.fixed, *chosen, *seed] for seed in seeds]


def search(config: DictConfig, launcher: Launcher, arguments: Sequence[str]) -> None:
    """Ask and tell until the study has its trials. Raises UsageError."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings: dict[str, Any] = OmegaConf.to_container(config.hydra.sweeper, resolve=True)  # type: ignore[assignment]
    for name in ("n_trials", "n_jobs"):
        if settings[name] < 1:
            raise UsageError(f"hydra.sweeper.{name}={settings[name]} must be 1 or more")
    if settings["direction"] != "maximize":
        raise UsageError("hydra.sweeper.direction is maximize: a run returns its validation score")
    space = _space([f"{n}={v}" for n, v in (settings["params"] or {}).items()], arguments)
    folder, console = Path(config.hydra.sweep.dir), Console(emoji=False)
    study = _study(optuna, settings)
    kept = settings["storage"] is not None and settings["study_name"] is not None
    if space.seeds:
        console.print(f"every trial is the mean over seed={','.join(space.seeds)}", highlight=False)
    _take_over(optuna, study)
    number = 0
    while (left := settings["n_trials"] - _done(study)) > 0:
        trials = [_ask(study, space) for _ in range(min(left, settings["n_jobs"]))]
        jobs = [job for trial in trials for job in space.jobs(trial.params)]
        try:
            returned = launcher.launch(jobs, initial_job_idx=number)
        except BaseException as error:
            for trial in trials:
                _again(optuna, study, trial.number, trial.params)
            if isinstance(error, SystemExit | KeyboardInterrupt):
                told = _GOES_ON if kept else _STARTS_AGAIN
                print(f"metalearn: search stopped; {told}", file=sys.stderr)
                interrupted = isinstance(error, KeyboardInterrupt)
                raise SystemExit(130 if interrupted else error.code) from None
            raise
        number += len(jobs)
        each = len(jobs) // len(trials)
        for index, trial in enumerate(trials):
            scores = [job.return_value for job in returned[index * each : (index + 1) * each]]
            _tell(optuna, study, trial, scores)
    _write(optuna, study, folder, console)


def _space(params: Sequence[str], arguments: Sequence[str]) -> Space:
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = {o.key_or_group: o for o in parser.parse_overrides([*params, *arguments])}
    searched: dict[str, Any] = {}
    seeds: list[str] = []
    fixed = []
    for name, override in overrides.items():
        if not override.is_sweep_override():
            fixed.append(override.input_line or f"{name}={override.get_value_element_as_str()}")
        elif name == _AVERAGED and override.is_discrete_sweep():
            seeds = list(override.sweep_string_iterator())
        else:
            searched[override.get_key_element()] = distribution(override)
    if not searched:
        raise UsageError(
            "hydra/sweeper=optuna has nothing to search; give a range, as in "
            "'inner.rate=interval(0.01, 0.5)', or several values"
        )
    return Space(searched, seeds, fixed)


def distribution(override: Override) -> Any:
    """What Optuna draws from, for an override with several values or a range."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    try:
        if isinstance(value, ChoiceSweep | Glob) or getattr(value, "shuffle", False):
            return CategoricalDistribution(list(override.sweep_string_iterator()))
        if isinstance(value, IntervalSweep):
            low, high, log = value.start, value.end, "log" in value.tags
            whole = isinstance(low, int) and isinstance(high, int)
            kind: Any = IntDistribution if whole else FloatDistribution
            return kind(low, high, log=log)
        assert isinstance(value, RangeSweep)
        last = list(value.range())[-1]  # Hydra leaves the end out, Optuna takes it in
        whole = isinstance(value.start, int) and isinstance(value.step, int)
        kind = IntDistribution if whole else FloatDistribution
        return kind(value.start, last, step=value.step)
    except (ValueError, TypeError, IndexError) as error:
        raise UsageError(f"{override.input_line} cannot be searched: {error}") from None


def _study(optuna: Any, settings: dict[str, Any]) -> Any:
    sampler = make(settings["sampler"], "hydra.sweeper.sampler")
    try:
        return optuna.create_study(
            direction="maximize",
            sampler=sampler,
            storage=settings["storage"],
            study_name=settings["study_name"],
            load_if_exists=True,
        )
    except Exception as error:  # of SQLAlchemy, of a database, of Optuna
        reason = " ".join(str(error).split())
        raise UsageError(
            f"hydra.sweeper.storage={settings['storage']} cannot be used ({reason}); use "
            "sqlite:///<file>.db, with hydra.sweeper.study_name"
        ) from None


def _ask(study: Any, space: Space) -> Any:
    try:
        trial = study.ask(space.searched)
    except ValueError as error:
        raise UsageError(
            f"study {study.study_name} is of another search space ({error}); choose another "
            "hydra.sweeper.study_name"
        ) from None
    trial.set_user_attr(_OWNER, [socket.gethostname(), os.getpid()])
    return trial


def _done(study: Any) -> int:
    return sum(trial.state.name in ("COMPLETE", "FAIL") for trial in study.get_trials(False))


def _again(optuna: Any, study: Any, number: int, params: dict[str, Any]) -> None:
    """The trial was left before its end: its values come first when the study goes on."""
    study.tell(number, state=optuna.trial.TrialState.PRUNED)
    study.enqueue_trial(params)


def _take_over(optuna: Any, study: Any) -> None:
    """Trials of a process that was killed."""
    for trial in study.get_trials():
        host, process = trial.user_attrs.get(_OWNER, ("", 0))
        if trial.state.name == "RUNNING" and host == socket.gethostname() and not _lives(process):
            _again(optuna, study, trial.number, trial.params)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _tell(optuna: Any, study: Any, trial: Any, scores: Sequence[Any]) -> None:
    """The mean of the scores; a failure where a run has none, or one that is not a number."""
    if all(isinstance(score, float) and score == score for score in scores):
        study.tell(trial, sum(scores) / len(scores))
    else:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _write(optuna: Any, study: Any, folder: Path, console: Console) -> None:
    finished = study.get_trials(False, states=(optuna.trial.TrialState.COMPLETE,))
    if not finished:
        return
    best = study.best_trial
    found = {"name": "optuna", "best_params": best.params, "best_value": best.value}
    write_atomic(folder / RESULTS, yaml.safe_dump(found))
    told = " ".join(f"{name}={_written(value)}" for name, value in best.params.items())
    console.print(
        f"best of {len(finished)} trials: {best.value:.4f} with {told}",
        soft_wrap=True,
        highlight=False,
    )


def _written(value: Any) -> str:
    return str(value)
