"""Records to Weights & Biases, sent by a background thread: the run never waits for a server.

Nothing else in the project but wandb_service.py and wandb_report.py imports wandb, and all only
when they are used.
"""

import contextlib
import os
import queue
import secrets
import string
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from metalearn.tracking.reach import missing_key, one_line, unreachable
from metalearn.tracking.tracker import RunInfo, Status
from metalearn.tracking.wandb_service import release_id, set_up

Mode = Literal["online", "offline", "disabled"]

_MAX_QUEUE = 20_000  # records that wait for W&B to start or to keep up
_LAST_ANSWER = 1.5  # seconds in which a server that took the run shows that it is still there


class WandB:
    """Sends the records to W&B online, writes them for `wandb sync` offline, or does nothing.

    Scalars are logged under their own names over `step`. Each training episode is a row of
    its own over `episode` (`episodes/train/accuracy`, ...). An evaluation of another split
    logs the mean (`val/accuracy`), a histogram (`val/accuracy_histogram`) and a table
    (`val/episodes`) with a row an episode.

    Every call puts its record in a queue and returns. Where W&B cannot be reached or has no
    key, one line says so and the run is recorded offline, in `<run folder>/wandb`, with the
    same id. A resumed run logs again the steps after its checkpoint, as W&B cannot drop them.

    mode: "online", "offline" or "disabled".
    timeout: seconds to wait for the server's first answer, and again for its acceptance of
        the run (neither holds up training).
    finish_timeout: seconds that `close` waits for records to be uploaded, 5 at most where
        the run was interrupted, and not at all where the server is gone by then. What is left
        stays on disk for `wandb sync`.
    train_episodes: whether each training episode is a row. A row takes about 0.1 ms of the
        processor beside training, which shows where a meta-step takes less than about 10 ms.
    warn: where the one line goes; standard error if None.
    """

    def __init__(
        self,
        mode: Mode = "online",
        project: str = "metalearn",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        timeout: float = 4.0,
        finish_timeout: float = 10.0,
        train_episodes: bool = True,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if mode not in ("online", "offline", "disabled"):
            raise ValueError(f"tracker mode must be online, offline or disabled, not {mode!r}")
        self.mode: Mode = mode
        self.project, self.entity, self.group, self.tags = project, entity, group, tuple(tags)
        self.timeout, self.finish_timeout = timeout, finish_timeout
        self.train_episodes = train_episodes
        self._warn = warn or (lambda line: print(line, file=sys.stderr, flush=True))
        self._warned = False
        self._warning = threading.Lock()
        self._run_folder = "offline-run-*" if mode == "offline" else "run-*"
        self._queue: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_MAX_QUEUE)
        self._thread: threading.Thread | None = None
        self._exit_code = 0
        self._address: str | None = None  # of a server that took the run
        self._lost: str | None = None  # why it is given up
        self._all_taken = threading.Event()  # by wandb, which has written it to its file then
        self._defined: set[str] = set()
        self._tables = True
        self._episode = 0
        self._folder = Path()

    @classmethod
    def of(cls, tracker: Mapping[str, Any]) -> Self:
        """Of the values of a config under `conf/tracker/`, but for those of the run's folder."""
        return cls(**{name: value for name, value in tracker.items() if name != "plots"})

    def start(self, run: RunInfo) -> dict[str, Any]:
        """Start logging; returns `{"wandb_id": id}` for the checkpoint, {} where disabled."""
        if self.mode == "disabled":
            return {}
        # A sweep agent tells its run by WANDB_RUN_ID, and must find it under that id.
        letters = (secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
        identity = run.wandb_id or os.environ.get("WANDB_RUN_ID") or "".join(letters)
        self._folder = run.folder
        # Not joined at exit (daemon), so that not even a hanging server keeps the process.
        self._thread = threading.Thread(
            target=self._work, args=(run, identity), name="metalearn-wandb", daemon=True
        )
        self._thread.start()
        return {"wandb_id": identity}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._put(lambda run: self._log(run, "step", step, dict(values)))

    def episodes(self, step: int, split: str, values: Mapping[str, Sequence[float]]) -> None:
        if split == "train" and not self.train_episodes:
            return
        send = self._train_episodes if split == "train" else self._evaluation
        self._put(lambda run: send(run, step, split, dict(values)))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._put(lambda run: run.summary.update(dict(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def send(run: Any) -> None:
            import wandb

            data = [list(row) for row in rows]
            run.log({name: wandb.Table(columns=list(columns), data=data)})  # pyright: ignore[reportArgumentType]

        self._put(send)

    def close(self, status: Status) -> None:
        """Wait, within `finish_timeout`, until everything is uploaded or on disk."""
        if self._thread is None:
            return
        wait = min(self.finish_timeout, 5.0) if status == "interrupted" else self.finish_timeout
        self._exit_code = 0 if status == "finished" else 1
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=wait)
        # wandb would ask a server that is gone again and again.
        if self._all_taken.wait(wait) and (gone := self._gone()):
            self._warn_once(f"not uploaded ({gone})")
            wait = 0.0
        self._thread.join(wait)
        if self._thread.is_alive():
            self._warn_once(f"not uploaded within {wait:.0f} s")
        self._thread = None

    def _put(self, send: Callable[[Any], None]) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put_nowait(send)
        except queue.Full:
            self._warn_once("does not keep up; some records are missing there")

    def _warn_once(self, reason: str) -> None:
        with self._warning:  # both threads come here
            if self._warned:
                return
            self._warned = True
        self._warn(
            f"W&B: {reason}. The run goes on and metrics.jsonl has every record; "
            f"`wandb sync {self._folder}/wandb/{self._run_folder}` uploads it later."
        )

    def _work(self, info: RunInfo, identity: str) -> None:
        """The background thread: makes every call to wandb, in order; no exception leaves it."""
        try:
            run = self._open(info, identity)
        except Exception as error:
            self._warn_once(f"could not start ({one_line(error)})")
            self._all_taken.set()
            return
        while (send := self._queue.get()) is not None:
            try:
                send(run)
            except Exception as error:
                self._warn_once(f"a record failed ({one_line(error)})")
        self._all_taken.set()
        try:
            run.finish(exit_code=self._exit_code)
        except Exception as error:
            self._warn_once(f"did not finish ({one_line(error)})")

    def _gone(self) -> str | None:
        """The reason where a server that took the run answers no more; it is not asked again."""
        if self._address and not self._lost:
            self._lost = unreachable(self._address, min(self.timeout, _LAST_ANSWER))
        return self._lost

    def _open(self, info: RunInfo, identity: str) -> Any:
        settings = set_up()
        if self.mode == "online":
            address = os.environ.get("WANDB_BASE_URL") or settings.base_url
            reason = missing_key(address) or unreachable(address, self.timeout)
            if reason is None:
                try:
                    run = self._init(info, identity, "online")
                    self._address = address
                    return run
                except Exception as error:
                    reason = one_line(error)
                    release_id()
            self._run_folder = "offline-run-*"
            self._warn_once(f"recording offline ({reason})")
        return self._init(info, identity, "offline")

    def _init(self, info: RunInfo, identity: str, mode: Mode) -> Any:
        import wandb

        settings = {
            "silent": True,  # its lines would break our own live line
            "console": "off",
            "init_timeout": self.timeout,
            "finish_timeout": self.finish_timeout,
            "disable_git": True,  # the commit is in the config; asking git again takes time
            "save_code": False,
            "login_timeout": 1.0,
        }
        fields = set[str](wandb.Settings.model_fields)
        known: Any = {key: value for key, value in settings.items() if key in fields}
        run = wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            name=info.name,
            id=identity,
            resume="allow",
            dir=str(info.folder),
            config=info.config | {"commit": info.commit, "seed": info.seed},
            reinit="create_new",  # several runs of one process (sweeps) stay apart
            settings=wandb.Settings(**known),
        )
        run.define_metric("step", hidden=True)
        run.define_metric("episode", hidden=True)
        return run

    def _log(self, run: Any, axis: str, position: int, values: dict[str, Any]) -> None:
        for name in values:
            if name not in self._defined:
                self._defined.add(name)
                run.define_metric(name, step_metric=axis)
        run.log({axis: position} | values)

    def _train_episodes(
        self, run: Any, step: int, split: str, values: dict[str, Sequence[float]]
    ) -> None:
        count = len(next(iter(values.values()), ()))
        index = values.pop("index", None) or range(self._episode, self._episode + count)
        self._episode += count
        for row, number in enumerate(index):
            named = {f"episodes/{split}/{name}": item[row] for name, item in values.items()}
            self._log(run, "episode", int(number), named)

    def _evaluation(
        self, run: Any, step: int, split: str, values: dict[str, Sequence[float]]
    ) -> None:
        import wandb

        record: dict[str, Any] = {}
        for name, items in values.items():
            array = np.asarray(items, dtype=np.float64)
            if name == "index" or not array.size:
                continue
            record[f"{split}/{name}"] = float(array.mean())
            finite = array[np.isfinite(array)]
            if finite.size:  # a histogram of nothing, or of NaN, is an error
                record[f"{split}/{name}_histogram"] = wandb.Histogram(finite.tolist())
        self._log(run, "step", step, record)
        # Alone among records a table asks the server while it is logged. One that does not
        # answer takes ten seconds to fail, so the table comes last and is not tried again.
        if not self._tables or self._gone():
            return
        self._tables = False
        names: list[Any] = list(values)
        rows: list[Any] = [list(row) for row in zip(*values.values(), strict=True)]
        self._log(run, "step", step, {f"{split}/episodes": wandb.Table(columns=names, data=rows)})
        self._tables = True
