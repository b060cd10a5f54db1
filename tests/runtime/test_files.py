"""Files are whole or absent, and what is no plain file is written to and stays what it is."""

import os
import select
import signal
import threading
import time
from pathlib import Path

from metalearn.runtime.files import one_at_a_time, write_atomic
from tests.preloaded import Process


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("one", "two\n"):
        write_atomic(tmp_path / "sub" / "a.txt", text)
        assert (tmp_path / "sub" / "a.txt").read_text() == text
    write_atomic(tmp_path / "sub" / "a.txt", b"\x00\r\n\xff")
    assert (tmp_path / "sub" / "a.txt").read_bytes() == b"\x00\r\n\xff"
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.txt"]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    """As /dev/null does, which a superuser could replace by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    write_atomic(pipe, "told")
    reader.join(60)
    assert got == ["told"] and pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


WAIT = """
import sys
from pathlib import Path
from metalearn.runtime.files import one_at_a_time
with one_at_a_time(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_dies_with_its_process_and_leaves_no_file(tmp_path: Path) -> None:
    """The second waits for as long as the first lives, also where that is killed."""
    lock = str(tmp_path / "lock")
    with Process(WAIT, lock) as first, Process(WAIT, lock) as second:
        ready = {p: select.select([p.stdout], [], [], 0)[0] for p in (first, second)}
        while not any(ready.values()):
            assert first.returncode is None and second.returncode is None
            ready = {p: select.select([p.stdout], [], [], 0.1)[0] for p in (first, second)}
        holder, waiter = (first, second) if ready[first] else (second, first)
        assert holder.stdout.readline() == "held\n"
        assert not select.select([waiter.stdout], [], [], 1.0)[0]
        holder.send_signal(signal.SIGKILL)
        assert waiter.stdout.readline() == "held\n"
        waiter.communicate()
        assert waiter.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_many_threads_take_turns(tmp_path: Path) -> None:
    """Who waits for a file that is removed finds the next one: no two hold it at once."""
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with one_at_a_time(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and list(tmp_path.iterdir()) == []
