"""Claims: one worker for each attempt, whoever asks, and what a dead one leaves."""

import threading
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from metalearn.sweeps.claims import AGAIN, DONE, FAILED, STOPPED, Attempt, Claims, hopeless
from metalearn.sweeps.heartbeat import Watch, Worker, ask_to_stop
from tests import preloaded

CLAIMER = """
import sys
from pathlib import Path
from metalearn.sweeps.claims import Claims
claims, name = Claims(Path("study")), sys.argv[1]
sys.stdin.readline()
for n in range(200):
    if claims.claim(f"run{n}", 1, name):
        print(n)
"""


def test_of_eight_processes_one_has_each_run(workplace: Path) -> None:
    with ExitStack() as stack:
        claimers = [stack.enter_context(preloaded.Process(CLAIMER, f"w{n}")) for n in range(8)]
        for claimer in claimers:  # all at once
            claimer.stdin.write("\n")
            claimer.stdin.flush()
        won = [[int(line) for line in claimer.communicate()[0].split()] for claimer in claimers]
    assert sorted(n for own in won for n in own) == list(range(200))
    attempts = Claims(Path("study")).read()
    for name, own in enumerate(won):
        assert all(attempts[f"run{n}"][0].worker == f"w{name}" for n in own)


def test_a_claim_that_the_network_repeats_is_still_its_own(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    assert claims.claim("a", 1, "me", 40) and claims.claim("a", 1, "me", 40)
    assert not claims.claim("a", 1, "other", 40)


def test_the_last_attempt_says_how_a_run_stands(tmp_path: Path) -> None:
    claims, states = Claims(tmp_path), []
    for number, ends in enumerate([[], [STOPPED], [FAILED], [FAILED, AGAIN], [DONE]], 1):
        assert claims.claim("a", number, f"w{number}", 10 * number)
        for end in ends:
            claims.end("a", number, end, {"told": end})
        states.append(claims.read()["a"][-1].state)
    assert states == ["claimed", "waiting", "failed", "waiting", "done"]
    found = claims.read()["a"]
    assert [(a.number, a.worker, a.step) for a in found] == [
        (n, f"w{n}", 10 * n) for n in range(1, 6)
    ]
    assert claims.record("a", found[3]) == {"told": FAILED} and claims.record("a", found[0]) == {}
    assert claims.taken_over("a", 4) and not claims.taken_over("a", 5)
    (tmp_path / "claims" / ".a.6.done.77.part").write_text("")  # as it is being written
    assert len(claims.read()["a"]) == 5


@pytest.mark.parametrize(
    ("steps", "ends", "given_up"),
    [
        ([5, 5, 5], [(), (), ()], True),
        ([5, 5, 9], [(), (), ()], False),
        ([5, 5, 5], [(), (STOPPED,), ()], False),
        ([5, 5], [(), ()], False),
        ([0, 5, 5, 5], [(DONE,), (), (), ()], True),
    ],
)
def test_a_run_that_kills_its_workers_is_given_up(
    steps: list[int], ends: list[tuple[str, ...]], given_up: bool
) -> None:
    pairs = zip(steps, ends, strict=True)
    attempts = [Attempt(n, "w", s, set(e)) for n, (s, e) in enumerate(pairs, 1)]
    assert hopeless(attempts) == given_up


def test_a_worker_under_this_kernel_lives_as_long_as_its_lock(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        watch = Watch(tmp_path, silent=0.0)
        assert watch.lives(worker.name) and not watch.elsewhere(worker.name)
        worker._lock.release()  # as when it is killed
        assert not watch.lives(worker.name)
    assert not Watch(tmp_path).lives(worker.name)


def test_elsewhere_only_beats_tell_and_no_clock_but_its_own(tmp_path: Path) -> None:
    folder, now = tmp_path / "workers", [0.0]
    folder.mkdir()
    (folder / "far.json").write_text('{"machine": "another"}')
    watch = Watch(tmp_path, silent=60, clock=lambda: now[0])
    told = []
    # The beat as it is seen at these seconds; a date in it, or none, would change nothing.
    for now[0], beat in [(0, "7"), (59, "7"), (60, "3"), (119, "3"), (121, "3"), (122, "4")]:
        (folder / "far.beat").write_text(beat)
        told.append(watch.lives("far"))
    assert told == [True, True, True, True, False, True]
    assert Watch(tmp_path, clock=lambda: -1e9).lives("far")  # to one who has only come
    assert Watch(tmp_path).lives("")  # a name that could not be read


def test_beats_change_and_a_stop_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalearn.sweeps.heartbeat.BEAT", 0.02)
    heard = threading.Event()
    monkeypatch.setattr("metalearn.sweeps.heartbeat.os.kill", lambda *_: heard.set())
    with Worker(tmp_path) as worker:
        path = tmp_path / "workers" / f"{worker.name}.beat"
        first = path.read_text()
        assert ask_to_stop(tmp_path) == [worker.name]
        assert heard.wait(10) and worker.asked == "asked to stop"
        beats = [first, path.read_text()]
        assert all(len(a) == len(b) and a < b for a, b in pairwise(beats))
    assert not path.exists() and ask_to_stop(tmp_path) == []
