"""Tars are unpacked within bounds, or not at all."""

import tarfile
from pathlib import Path

import pytest

from metalearn.data import DataError
from metalearn.data.archive import Limits, untarred
from tests.inputs.files import member, tar

GOOD = (member("birds/a.txt"), b"hello")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_files_are_there_and_then_gone(tmp_path: Path, mode: str) -> None:
    archive = tar(tmp_path / "a.tar", GOOD, (member("birds/b", tarfile.DIRTYPE), b""), mode=mode)
    with untarred(archive, tmp_path / "cache") as folder:
        assert (folder / "birds" / "a.txt").read_bytes() == b"hello"
        assert (folder / "birds" / "b").is_dir()
    assert list((tmp_path / "cache").iterdir()) == []


HOSTILE = {
    "up": (member("../evil"), b"!", "points outside"),
    "up inside": (member("a/../../evil"), b"!", "points outside"),
    "absolute": (member("/tmp/evil"), b"!", "points outside"),
    "drive": (member("C:evil"), b"!", "points outside"),
    "backslash": (member("..\\evil"), b"!", "points outside"),
    "symlink": (member("a", tarfile.SYMTYPE, "/etc"), b"", "link or a device"),
    "hard link": (member("a", tarfile.LNKTYPE, "birds/a.txt"), b"", "link or a device"),
    "device": (member("a", tarfile.CHRTYPE), b"", "link or a device"),
    "pipe": (member("a", tarfile.FIFOTYPE), b"", "link or a device"),
    "bomb": (member("a"), b"0" * 400_000, "times its size"),
}


@pytest.mark.parametrize("info, content, said", HOSTILE.values(), ids=HOSTILE)
def test_hostile_members(tmp_path: Path, one_line, info, content, said) -> None:
    archive = tar(tmp_path / "a.tar.gz", GOOD, (info, content))
    with pytest.raises(DataError) as caught, untarred(archive, tmp_path / "cache"):
        pytest.fail("it was unpacked")
    assert said in one_line(caught)
    assert list((tmp_path / "cache").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "cache"]


@pytest.mark.parametrize(
    "limits, said",
    [
        (Limits(members=0), "more than 0 members"),
        (Limits(member_bytes=4), "would unpack to 5 bytes"),
        (Limits(total_bytes=4), "more than 4 bytes"),
    ],
)
def test_limits(tmp_path: Path, one_line, limits: Limits, said: str) -> None:
    archive = tar(tmp_path / "a.tar", GOOD)
    with pytest.raises(DataError) as caught, untarred(archive, tmp_path / "cache", limits):
        pytest.fail("it was unpacked")
    assert said in one_line(caught)


@pytest.mark.parametrize("spoil", ["empty", "text", "half", "flipped"])
def test_damaged(tmp_path: Path, one_line, spoil: str) -> None:
    archive = tar(tmp_path / "a.tgz", GOOD, (member("b"), bytes(range(256)) * 40))
    content = archive.read_bytes()
    wrong = bytearray(content)
    wrong[len(content) // 2] ^= 255
    spoilt = {
        "empty": b"",
        "text": b"no tar",
        "half": content[: len(content) // 2],
        "flipped": bytes(wrong),
    }
    archive.write_bytes(spoilt[spoil])
    with pytest.raises(DataError) as caught, untarred(archive, tmp_path / "cache"):
        pytest.fail("it was unpacked")
    assert "no whole tar file" in one_line(caught)
    assert list((tmp_path / "cache").iterdir()) == []


def test_nowhere_to_unpack(tmp_path: Path, one_line) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught, untarred(tmp_path / "a", tmp_path / "file"):
        pytest.fail("it was unpacked")
    assert "METALEARN_CACHE" in one_line(caught)
    with pytest.raises(DataError) as caught, untarred(tmp_path / "a.tar", tmp_path / "cache"):
        pytest.fail("it was unpacked")
    assert "a.tar" in one_line(caught)
