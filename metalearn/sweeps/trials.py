"""A search by Optuna: its trials are what the workers of a study take, one after the other."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from metalearn.errors import UsageError
from metalearn.sweeps.claims import DONE, PRUNED
from metalearn.sweeps.search import Search

JOURNAL, _NAME, _SLOT = "trials.journal", "search", "slot"
_PRUNED_AT, _WHY = "pruned_at", "why"
_KEY = "trial-{:04}"

Watch = Callable[[int, float], bool]
Perform = Callable[[dict[str, Any], Console, Watch | None], float | None]


class TrialJobs:
    """The trials of a search, each a job for one worker, asked for and told in Optuna's journal.

    A trial enters the journal as one line, with its values; until then nothing has happened.
    What Optuna decides (the values, whether to prune) it decides on a copy in memory. So a worker
    that is killed at any moment leaves a trial that was not asked for, or one that goes on.

    compose: from overrides to a configuration. perform: runs one.
    """

    def __init__(
        self,
        study: Path,
        search: Search,
        compose: Callable[[Sequence[str]], dict[str, Any]],
        perform: Perform,
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._folder, self.search = optuna, study, search
        self._compose, self._perform = compose, perform
        path = study / JOURNAL
        _mend(path)
        backend = JournalFileBackend(str(path))
        try:
            self._storage = optuna.storages.JournalStorage(backend)
            self._study = optuna.create_study(
                storage=self._storage, study_name=_NAME, direction="maximize", load_if_exists=True
            )
        except (ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{path} is damaged ({reason}); name another folder") from None
        self._id = self._storage.get_study_id_from_name(_NAME)

    def every(self) -> Sequence[str]:
        return [_KEY.format(slot) for slot in range(self.search.trials)]

    def name(self, key: str) -> str:
        """The values of a trial that was asked for."""
        trial = self._found(key)
        return " ".join(_words(trial.params)) if trial else ""

    def folder(self, key: str) -> Path | None:
        runs = self._folder / "runs"
        found = sorted(runs.glob(f"{key}-seed*"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else runs / key

    def run(self, key: str, console: Console) -> dict[str, Any]:
        """Raises UsageError where a score is no number, or the trial was given up before."""
        trial = self._found(key) or self._ask(key)
        states = self._optuna.trial.TrialState
        if trial.state == states.FAIL:
            raise UsageError(trial.user_attrs.get(_WHY, "told as failed before"))
        if trial.state in (states.COMPLETE, states.PRUNED):  # and then its worker died
            how = DONE if trial.state == states.COMPLETE else PRUNED
            return {"how": how, "score": trial.value}
        scores: list[float] = []
        for folder, overrides in self._runs(key, trial.params):
            config = {**self._compose(overrides), "run_dir": str(folder)}
            if _PRUNED_AT in trial.user_attrs or self._score(trial, config, console, scores):
                self._study.tell(trial.number, state=states.PRUNED)
                return {"how": PRUNED}
        value = sum(scores) / len(scores)
        self._study.tell(trial.number, value)
        return {"score": value}

    def _score(
        self, trial: Any, config: dict[str, Any], console: Console, scores: list[float]
    ) -> bool:
        """Run it, and add its score to `scores`; or whether it was pruned."""
        pruned: list[int] = []

        def watch(validation: int, score: float) -> bool:
            if self._hopeless(trial.number, validation, score):
                pruned.append(validation)
            return bool(pruned)

        try:
            score = self._perform(config, console, None if self.search.seeds[1:] else watch)
        except SystemExit:
            if not pruned:
                raise
            return True
        if score is None or not math.isfinite(score):
            raise UsageError(f"its validation score is {score}")
        scores.append(score)
        return False

    def given_up(self, key: str, why: str) -> None:
        trial = self._found(key)
        if trial is not None and not trial.state.is_finished():
            self._storage.set_trial_user_attr(self._trial_id(trial.number), _WHY, why)
            self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

    def retried(self, key: str) -> None:
        """Optuna ends a trial once: another one has its place, its values, and what its run, which
        goes on, has reached."""
        state, trial = self._optuna.trial.TrialState, self._found(key)
        if trial is not None and trial.state == state.FAIL:
            self._begin(
                trial.params,
                trial.distributions,
                user_attrs={n: v for n, v in trial.user_attrs.items() if n != _WHY},
                system_attrs=trial.system_attrs,
                intermediate_values=trial.intermediate_values,
            )

    def again(self, error: BaseException, failures: int) -> bool:
        """Once, where the configuration is not what is wrong."""
        return failures < 2 and not isinstance(error, UsageError)

    def best(self) -> str:
        """A line for people; empty where no trial has a score."""
        complete = self._optuna.trial.TrialState.COMPLETE
        done = self._study.get_trials(deepcopy=False, states=(complete,))
        if not done:
            return ""
        best = max(done, key=lambda trial: (trial.value, -trial.number))
        key = _KEY.format(best.user_attrs[_SLOT])
        words = " ".join(_words(best.params))
        return f"best of {len(done)} trials: {best.value:.4f} with {words} ({key})"

    def _found(self, key: str) -> Any:
        slot = int(key.rpartition("-")[2])
        # The newest, where one was retried.
        trials = reversed(self._study.get_trials(deepcopy=False))
        return next((trial for trial in trials if trial.user_attrs.get(_SLOT) == slot), None)

    def _ask(self, key: str) -> Any:
        slot = int(key.rpartition("-")[2])
        memory, _ = self._copy(sampler=self.search.made("sampler", slot))
        trial = memory.ask()
        values, kinds = self.search.chosen(lambda name, kind: _suggest(trial, name, kind))
        self._begin(values, kinds, user_attrs={_SLOT: slot})
        return self._found(key)

    def _begin(self, values: dict[str, Any], kinds: dict[str, Any], **more: Any) -> None:
        state = self._optuna.trial.TrialState.RUNNING
        made = self._optuna.trial.create_trial(
            state=state, params=values, distributions=kinds, **more
        )
        self._study.add_trial(made)

    def _hopeless(self, number: int, validation: int, score: float) -> bool:
        """Whether the pruner ends a trial after so many validations."""
        place = self._trial_id(number)
        trial = self._storage.get_trial(place)
        if validation not in trial.intermediate_values:  # else it was killed after
            self._storage.set_trial_intermediate_value(place, validation, score)
        pruner = self.search.made("pruner")
        memory, kept = self._copy(pruner=pruner)
        own = kept.get_trial_id_from_study_id_trial_number(
            kept.get_study_id_from_name(_NAME), number
        )
        ends = pruner.prune(memory, kept.get_trial(own))
        if ends:  # before what the pruner keeps, by which it would decide otherwise again
            self._storage.set_trial_user_attr(place, _PRUNED_AT, validation)
        for name, value in kept.get_trial(own).system_attrs.items():
            if name not in trial.system_attrs:
                self._storage.set_trial_system_attr(place, name, value)
        return ends

    def _copy(self, **options: Any) -> tuple[Any, Any]:
        """The study as it is now, in memory, and its storage."""
        storage = self._optuna.storages.InMemoryStorage()
        study = self._optuna.create_study(
            storage=storage, study_name=_NAME, direction="maximize", **options
        )
        study.add_trials(self._study.get_trials())
        return study, storage

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _runs(self, key: str, params: Mapping[str, Any]) -> list[tuple[Path, list[str]]]:
        """Folder and overrides of the runs of a trial."""
        runs, own = self._folder / "runs", [*self.search.overrides, *_words(params)]
        if not self.search.seeds:
            return [(runs / key, own)]
        return [(runs / f"{key}-seed{s}", [*own, f"seed={s}"]) for s in self.search.seeds]


def _words(params: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in params.items()]


def _suggest(trial: Any, name: str, kind: Any) -> Any:
    if hasattr(kind, "choices"):
        return trial.suggest_categorical(name, kind.choices)
    suggest = trial.suggest_int if isinstance(kind.low, int) else trial.suggest_float
    return suggest(name, kind.low, kind.high, step=kind.step, log=kind.log)


def _mend(path: Path) -> None:
    """Take away a last line that a full disk has cut: what is written after it would be lost."""
    from optuna.storages.journal import JournalFileSymlinkLock

    if not path.exists():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
