"""W&B online against servers that fail, each in a process of its own, its exit included.

A busy machine makes everything slow, so no test here asks for seconds alone: what was asked of the
server is counted, and what takes time is compared with a run that works offline at the same time.
"""

import contextlib
import http.server
import json
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from metalearn.tracking import read_records
from tests.preloaded import Process

KEY = "0123456789abcdef0123456789abcdef01234567"
LIMIT = 600  # seconds until a process is given up

SCRIPT = """
import json, sys, time
from pathlib import Path
from metalearn.tracking import JsonLines, RunInfo, Tracker, WandB

folder, mode, pause, *limits = Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])
times = {}

def warn(line):
    times["warned"] = time.monotonic()
    print(line, file=sys.stderr)

tracker = Tracker([JsonLines(), WandB(mode, "m", None, None, (), *limits, warn=warn)])
tracker.start(RunInfo("name", folder, {}, None, 0, 20))
for step in range(1, 21):
    tracker.scalars(step, {"loss": 1 / step})
    tracker.episodes(step, "train", {"accuracy": [0.5] * 4, "loss": [1.0] * 4})
time.sleep(pause)
times["trained"] = time.monotonic()
tracker.episodes(20, "test", {"accuracy": [0.5] * 600})
tracker.summary({"accuracy": 0.5})
tracker.close("finished")
times["closed"] = time.monotonic()
print(json.dumps(times))
"""


class Vanishing(http.server.BaseHTTPRequestHandler):
    """Takes a run as W&B would, and answers nothing any more once its first rows have come."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar = {
        "Viewer": {"viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}"}},
        "RunResumeStatus": {"model": {"id": "P", "name": "m", "bucket": None}},
        "UpsertBucket": {"upsertBucket": {"bucket": {
            "id": "B", "name": "id", "displayName": "n", "config": "{}",
            "project": {"name": "m", "entity": {"name": "me"}}}, "inserted": True}},
    }  # fmt: skip
    gone = threading.Event()
    over = threading.Event()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("file_stream"):
            self.gone.set()
        if self.gone.is_set():
            self.over.wait()
            return
        asked = re.search(r"(?:query|mutation)\s+(\w+)", body.decode(errors="replace"))
        answer = json.dumps({"data": self.answers.get(asked[1] if asked else "", {})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):  # type: ignore[override]
        """Quiet."""


class Broken(http.server.BaseHTTPRequestHandler):
    """Answers 500 to everything, and counts it."""

    asked: ClassVar[list[str]] = []

    def do_POST(self):
        self.asked.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):  # type: ignore[override]
        """Quiet."""


@contextlib.contextmanager
def server(kind):
    """A server that refuses, never answers, or answers 500: its address, and what tells how often
    it was asked."""
    if kind == "answers 500":
        Broken.asked.clear()
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
            thread = threading.Thread(target=broken.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{broken.server_port}", lambda: len(Broken.asked)
            broken.shutdown()
            thread.join()
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "timed out":
            listener.listen(64)

        def connections() -> int:
            listener.setblocking(False)
            found = 0
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    found += 1
            return found

        yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections


def run(folder: Path, mode: str, *numbers: float, **environment: str):
    """A run in a process of its own, and when each of its stages ended.

    numbers: seconds after the training, and W&B's `timeout` and `finish_timeout`.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folder.mkdir()
    with Process(SCRIPT, str(folder), mode, *map(str, numbers), env=clean | environment) as run:
        out, err = run.communicate()
        gone = time.monotonic()  # one clock for all processes
        assert run.returncode == 0, err
    (line,) = out.splitlines()
    times: dict[str, Any] = json.loads(line) | {"gone": gone}
    return err, times


def beside_offline(folder: Path, addresses: dict[str, str], *numbers: float):
    """By name, the warning of a run with W&B at each of `addresses` and its times; and the times
    of one that is offline. All at the same time."""
    with ThreadPoolExecutor(len(addresses) + 1) as together:
        online = {
            name: together.submit(
                run, folder / name, "online", *numbers, WANDB_BASE_URL=address, WANDB_API_KEY=KEY
            )
            for name, address in addresses.items()
        }
        offline = together.submit(run, folder / "offline", "offline", numbers[0], LIMIT, LIMIT)
        quiet, other = offline.result()
        done = {name: future.result() for name, future in online.items()}
    assert quiet == ""
    for name in done:
        kinds = [record["kind"] for record in read_records(folder / name / "metrics.jsonl")]
        assert kinds == ["scalars", "episodes"] * 20 + ["episodes", "summary"]
    (warnings,) = zip(*(err.splitlines() for err, _ in done.values()), strict=True)
    told = zip(done, warnings, done.values(), strict=True)
    return {name: (warning, times) for name, warning, (_, times) in told}, other


def some(other: dict, begin: str, end: str) -> float:
    """Seconds that a stage may take for which the other run took so long, 4 of them at least."""
    return 4 * max(1.0, other[end] - other[begin])


def test_a_server_out_of_reach_is_asked_once_and_loses_nothing(tmp_path):
    kinds = ("refused", "timed out", "answers 500")
    with contextlib.ExitStack() as stack:
        servers = {kind: stack.enter_context(server(kind)) for kind in kinds}
        addresses = {kind: address for kind, (address, _) in servers.items()}
        told, other = beside_offline(tmp_path, addresses, 0, 1.0, LIMIT)
        # What is not asked again keeps nobody waiting, neither the run nor its exit.
        asked = {kind: count() for kind, (_, count) in servers.items()}
    assert asked == {"refused": 0, "timed out": 1, "answers 500": 1}
    for kind, (warning, times) in told.items():
        assert warning.startswith("W&B: recording offline (http://127.0.0.1") and kind in warning
        if kind == "timed out":
            assert times["trained"] < times["warned"]  # no step waited for the answer
        # wandb's reports about itself would take ten seconds.
        assert times["gone"] - times["closed"] < some(other, "closed", "gone")
        folder = tmp_path / kind
        # 20 rows of scalars, 80 of episodes and a table of 600: all that was to be recorded.
        (offline,) = folder.glob("wandb/offline-run-*/*.wandb")
        assert offline.stat().st_size > 10_000
        (table,) = folder.glob("wandb/offline-run-*/files/media/table/test/*.json")
        assert len(json.loads(table.read_text())["data"]) == 600


@pytest.mark.slow
def test_a_server_that_vanishes_during_the_run_delays_its_end_alone(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Vanishing) as vanishing:
        thread = threading.Thread(target=vanishing.serve_forever)
        thread.start()
        address = {"online": f"http://127.0.0.1:{vanishing.server_port}"}
        told, other = beside_offline(tmp_path, address, 4, LIMIT, 60.0)
        assert Vanishing.gone.is_set()  # the run did begin online
        Vanishing.over.set()
        vanishing.shutdown()
        thread.join()
    ((warning, times),) = told.values()
    assert warning.startswith("W&B: not uploaded (http://127.0.0.1") and "not answer" in warning
    assert times["trained"] < times["warned"]
    (kept,) = (tmp_path / "online").glob("wandb/run-*/*.wandb")
    written = kept.read_bytes()  # all of it: an evaluation is the last
    assert written.count(b"episodes/train/accuracy") >= 80 and b"test/accuracy" in written
    # The exit alone by `finish_timeout`: wandb writes its file until then.
    assert times["closed"] - times["trained"] < 60 + some(other, "trained", "closed")
    assert times["gone"] - times["closed"] < 60 + some(other, "closed", "gone")
