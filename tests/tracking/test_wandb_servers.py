"""W&B online against servers that fail, each in a process of its own, its exit included."""

import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest

from metalearn.tracking import read_records

KEY = "0123456789abcdef0123456789abcdef01234567"

SCRIPT = """
import json, sys, time
from pathlib import Path
from metalearn.tracking import JsonLines, RunInfo, Tracker, WandB

tracker = Tracker([JsonLines(), WandB("online", timeout=1.0, finish_timeout=10.0)])
begin = time.perf_counter()
tracker.start(RunInfo("name", Path(sys.argv[1]), {}, None, 0, 20))
for step in range(1, 21):
    tracker.scalars(step, {"loss": 1 / step})
    tracker.episodes(step, "train", {"accuracy": [0.5] * 4, "loss": [1.0] * 4})
trained = time.perf_counter() - begin
tracker.episodes(20, "test", {"accuracy": [0.5] * 600})
tracker.summary({"accuracy": 0.5})
tracker.close("finished")
done = {"trained": trained, "all": time.perf_counter() - begin, "clock": time.monotonic()}
print(json.dumps(done))
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
    """Answers 500 to everything."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):  # type: ignore[override]
        """Quiet."""


@contextlib.contextmanager
def server(kind):
    """Yield the address of a server that refuses, never answers, or answers 500."""
    if kind == "answers 500":
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
            thread = threading.Thread(target=broken.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{broken.server_port}"
            broken.shutdown()
            thread.join()
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "timed out":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["refused", "timed out", "answers 500"])
def test_a_server_out_of_reach_costs_seconds_and_loses_nothing(kind, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    with server(kind) as address:
        environment |= {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        gone = time.monotonic()
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("W&B: recording offline (http://127.0.0.1") and kind in warning
    (line,) = done.stdout.splitlines()
    seconds = json.loads(line)
    assert seconds["trained"] < 0.5 and seconds["all"] < 10.0
    assert gone - seconds["clock"] < 5.0  # nothing waits at the exit; one clock for both processes
    kinds = [record["kind"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert kinds == ["scalars", "episodes"] * 20 + ["episodes", "summary"]
    # 20 rows of scalars, 80 of episodes and a table of 600: all that was to be recorded.
    (offline,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert offline.stat().st_size > 10_000
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/test/*.json")
    assert len(json.loads(table.read_text())["data"]) == 600


@pytest.mark.slow
def test_a_server_that_vanishes_during_the_run_delays_its_end_alone(tmp_path):
    script = SCRIPT.replace("trained =", "time.sleep(4)\ntrained =").replace("10.0", "3.0")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Vanishing) as vanishing:
        thread = threading.Thread(target=vanishing.serve_forever)
        thread.start()
        environment |= {"WANDB_BASE_URL": f"http://127.0.0.1:{vanishing.server_port}"}
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environment | {"WANDB_API_KEY": KEY}, capture_output=True, text=True,
            timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert Vanishing.gone.is_set()  # the run did begin online
        Vanishing.over.set()
        vanishing.shutdown()
        thread.join()
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("W&B: ")
    seconds = json.loads(done.stdout)
    assert seconds["trained"] < 4.5 and seconds["all"] - seconds["trained"] < 5.0
    kinds = [record["kind"] for record in read_records(tmp_path / "metrics.jsonl")]
    assert kinds == ["scalars", "episodes"] * 20 + ["episodes", "summary"]
