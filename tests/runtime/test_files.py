"""Files are whole or absent, and what is no plain file is written to and stays what it is."""

import os
import threading
from pathlib import Path

from metalearn.runtime.files import write_atomic


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
