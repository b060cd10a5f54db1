"""Downloads from a server that resumes, truncates, lies, stalls and vanishes."""

import hashlib
import importlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from metalearn.data import DataError, omniglot
from metalearn.data.cifar import find_archive as find_cifar
from metalearn.data.cub import find_archive as find_cub
from metalearn.data.download import download


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "file.zip"


@pytest.fixture
def sums(server) -> dict[str, str]:
    return {
        "sha256": hashlib.sha256(server.content).hexdigest(),
        "md5": hashlib.md5(server.content).hexdigest(),
    }


def files(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_whole_file_and_no_second_request(server, target, sums) -> None:
    for _ in range(2):
        assert download([server.url], target, **sums) == target
    assert target.read_bytes() == server.content
    assert server.requests == [None]
    assert files(target) == ["file.zip"]


def test_a_part_is_continued(server, target, sums) -> None:
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(server.content[:1000])
    download([server.url], target, **sums)
    assert server.requests == ["bytes=1000-"]
    assert target.read_bytes() == server.content


def test_a_part_that_is_whole_needs_no_request(server, target, sums) -> None:
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(server.content)
    download([server.url], target, **sums)
    assert server.requests == []
    assert files(target) == ["file.zip"]


@pytest.mark.parametrize("junk", [b"x" * 1000, b"x" * 400_000], ids=["shorter", "longer"])
def test_a_bad_part_is_begun_anew(server, target, sums, junk) -> None:
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(junk)
    download([server.url], target, **sums)
    assert target.read_bytes() == server.content
    assert server.requests == [f"bytes={len(junk)}-", None]


def test_without_a_checksum_a_part_is_never_continued(server, target) -> None:
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(b"x" * 1000)
    download([server.url], target)
    assert server.requests == [None]
    assert target.read_bytes() == server.content


def test_range_ignored(server, target, sums) -> None:
    server.behave = lambda request, _: server.answer(request, 200, server.content)
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(server.content[:1000])
    download([server.url], target, **sums)
    assert target.read_bytes() == server.content


def test_range_continued_at_another_place(server, target, sums) -> None:
    def behave(request, number) -> None:
        if number == 1:
            span = {"Content-Range": "bytes 500-299999/300000"}
            server.answer(request, 206, server.content[500:], headers=span)
        else:
            server.honest(request, number)

    server.behave = behave
    target.parent.mkdir()
    target.with_name("file.zip.part").write_bytes(server.content[:1000])
    download([server.url], target, **sums)
    assert server.requests == ["bytes=1000-", None]
    assert target.read_bytes() == server.content


def test_truncated_answers_are_continued(server, target, sums) -> None:
    """Each answer promises the rest and breaks off after 100,000 bytes."""

    def behave(request, number) -> None:
        span = request.headers.get("Range")
        start = int(span[6:-1]) if span else 0
        size = len(server.content)
        extra = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if span else {}
        body = server.content[start : start + 100_000]
        server.answer(request, 206 if span else 200, body, length=size - start, headers=extra)

    server.behave = behave
    download([server.url], target, **sums)
    assert server.requests == [None, "bytes=100000-", "bytes=200000-"]
    assert target.read_bytes() == server.content


def test_always_truncated_is_given_up(server, target, one_line) -> None:
    server.behave = lambda request, _: server.answer(request, 200, b"x" * 10, length=1000)
    with pytest.raises(DataError, match="cut short at 10 of 1000") as caught:
        download([server.url], target)
    one_line(caught)
    assert len(server.requests) == 3
    assert files(target) == []


def test_a_length_that_lies_short(server, target, sums, one_line) -> None:
    server.behave = lambda request, _: server.answer(request, 200, server.content, length=1000)
    with pytest.raises(DataError, match="wrong sha256") as caught:
        download([server.url], target, **sums)
    one_line(caught)
    assert files(target) == []


def test_wrong_bytes_then_the_next_mirror(server, target, sums) -> None:
    def behave(request, number) -> None:
        if number == 1:
            server.answer(request, 200, b"<html>not found</html>")
        else:
            server.honest(request, number)

    server.behave = behave
    download([server.url, server.url + "?mirror"], target, **sums)
    assert target.read_bytes() == server.content
    assert files(target) == ["file.zip"]


def test_wrong_bytes_everywhere(server, target, one_line) -> None:
    with pytest.raises(DataError, match="wrong md5") as caught:
        download([server.url], target, md5="0" * 32)
    one_line(caught)
    assert files(target) == []


def test_missing_file_is_not_asked_for_again(server, target, sums) -> None:
    server.behave = lambda request, _: server.answer(request, 404, b"")
    with pytest.raises(DataError, match="HTTP 404"):
        download([server.url], target, **sums)
    assert len(server.requests) == 1


@pytest.mark.parametrize("make", [find_cub, find_cifar], ids=["cub", "cifar"])
def test_a_missing_file_is_asked_of_the_next_mirror(
    server, sums, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make
) -> None:
    def behave(request, number) -> None:
        if "gone" in request.path:
            server.answer(request, 404, b"")
        else:
            server.honest(request, number)

    server.behave = behave
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    monkeypatch.setitem(make.__globals__, "MIRRORS", (server.url + "?gone", server.url))
    monkeypatch.setitem(make.__globals__, "MD5", sums["md5"])
    assert make(tmp_path / "cache").read_bytes() == server.content
    assert len(server.requests) == 2


@pytest.mark.parametrize("name", ["cifar", "cub", "omniglot"])
def test_there_are_two_mirrors_of_one_file(name: str) -> None:
    mirrors = importlib.import_module(f"metalearn.data.{name}").MIRRORS
    assert len({urlsplit(url).netloc for url in mirrors}) == len(mirrors) == 2
    assert len({url.rpartition("/")[2] for url in mirrors}) == 1
    assert all(url.startswith("https://") for url in mirrors)


def test_busy_server_is_asked_again(server, target, sums) -> None:
    def behave(request, number) -> None:
        if number < 3:
            server.answer(request, 503, b"")
        else:
            server.honest(request, number)

    server.behave = behave
    download([server.url], target, **sums)
    assert target.read_bytes() == server.content


def test_stall_keeps_what_came_and_continues(server, target, sums) -> None:
    def behave(request, number) -> None:
        if number == 1:
            size = len(server.content)
            server.answer(request, 200, server.content[:70_000], length=size)
            server.released.wait(10)
        else:
            server.honest(request, number)

    server.behave = behave
    download([server.url], target, **sums, timeout=3.0)
    assert server.requests == [None, "bytes=70000-"]
    assert target.read_bytes() == server.content


def test_endless_answer_is_cut_off(server, target) -> None:
    with pytest.raises(DataError, match="more than 100000 bytes"):
        download([server.url], target, max_bytes=100_000)
    assert files(target) == []


def test_addresses_other_than_http_are_refused(tmp_path: Path, target) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    with pytest.raises(DataError, match="no http or https address"):
        download([secret.as_uri()], target)


def test_no_network_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses every connection
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/{{}}.zip"
        monkeypatch.setenv("no_proxy", "*")
        # The package exports the function under the name of its module.
        module = importlib.import_module("metalearn.data.omniglot")
        monkeypatch.setattr(module, "MIRRORS", (dead,))
        monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
        with pytest.raises(DataError) as caught:
            omniglot(tmp_path / "cache")
    text = one_line(caught)
    for part in ("images_background.zip", dead.format("images_background"), "METALEARN_DATA"):
        assert part in text
    assert [p.name for p in (tmp_path / "cache").rglob("*")] == ["omniglot"]


def test_two_at_once_fetch_once(server, target, sums) -> None:
    jobs = [
        threading.Thread(target=download, args=([server.url], target), kwargs=sums)
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert server.requests == [None]
    assert target.read_bytes() == server.content


def test_progress_goes_to_a_terminal_only(
    server, target, sums, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    download([server.url], target, **sums)
    assert capfd.readouterr() == ("", "")
    target.unlink()
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    download([server.url], target, **sums)
    out, err = capfd.readouterr()
    assert out == "" and "file.zip" in err


def test_a_folder_that_cannot_be_written(server, tmp_path: Path, one_line) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="METALEARN_CACHE") as caught:
        download([server.url], tmp_path / "cache" / "file.zip")
    one_line(caught)
    assert server.requests == []
