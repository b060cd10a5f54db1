"""Archives that are broken or hostile are refused in one line and leave nothing behind."""

import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from metalearn.data import DataError, folder
from metalearn.data.archive import Limits, open_archive
from metalearn.data.omniglot import decode
from tests.inputs.files import drawing, member, png_claiming, tar

EXPECTED = {"images_background": 2}


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def refused(tmp_path: Path, one_line):
    """Decode the archive into a cache of its own; it must fail and leave the disk as it was."""

    def check(path: Path, match: str) -> None:
        (tmp_path / "cache").mkdir(exist_ok=True)
        before = names(tmp_path)
        with pytest.raises(DataError, match=match) as caught:
            decode([path], tmp_path / "cache" / "store", 28, EXPECTED)
        assert str(path) in one_line(caught)
        assert names(tmp_path) == before

    return check


def test_a_good_one_decodes(tiny_archive, tmp_path: Path) -> None:
    extra = {"images_background/": b"", "__MACOSX/._x": b"1"}
    store = decode([tiny_archive(extra=extra)], tmp_path / "store", 28, EXPECTED)
    assert store.images.shape == (40, 28, 28, 1)
    assert store.classes == ("Tiny/character01", "Tiny/character02")
    assert 20 < store.images.mean() < 31  # a tenth of the paper is ink, and ink is 255


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "images_background/../../evil.png",
        "/tmp/evil.png",
        "C:/evil.png",
        "..\\evil.png",
        "\\evil.png",
        "a/..\\..\\evil",
    ],
)
def test_paths_that_climb_out(tiny_archive, refused, name: str) -> None:
    refused(tiny_archive(extra={name: b"x"}), "points outside the archive")


def test_a_name_with_a_zero_byte(tiny_archive, refused) -> None:
    path = tiny_archive(extra={"harmless_/evil": b"x"})
    path.write_bytes(path.read_bytes().replace(b"harmless_/", b"harmless\0/"))
    refused(path, "points outside the archive")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tiny_archive, refused, kind: int) -> None:
    member = zipfile.ZipInfo("images_background/link")
    member.external_attr = (kind | 0o777) << 16
    refused(tiny_archive(extra={member: b"/etc/passwd"}), "a link or a device")


def test_a_bomb_by_ratio(tiny_archive, refused) -> None:
    refused(tiny_archive(extra={"zeros": bytes(50_000_000)}), "times its size, more than 100")


def test_a_bomb_by_one_member(tiny_archive, refused) -> None:
    extra = {"zeros": bytes((64 << 20) + 1), "noise": np.random.default_rng(0).bytes(1 << 20)}
    refused(tiny_archive(extra=extra), "would unpack to 67108865 bytes")


def test_a_bomb_whose_size_lies(tiny_archive, refused) -> None:
    """The directory claims 10 bytes for a member that unpacks to 50 million."""
    path = tiny_archive()
    name = "images_background/Tiny/character01/0001_01.png"
    with zipfile.ZipFile(path) as old:
        members = {n: old.read(n) for n in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for n, content in members.items():
            file.writestr(n, bytes(50_000_000) if n == name else content)
    claim = struct.pack("<I", 50_000_000)
    path.write_bytes(path.read_bytes().replace(claim, struct.pack("<I", 10)))
    refused(path, "is damaged: Bad CRC-32|no 105x105 PNG")


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        (Limits(members=39), "40 members, more than 39"),
        (Limits(total_bytes=9999), "more than 9999"),
    ],
)
def test_limits_on_the_whole(tiny_archive, limits: Limits, match: str) -> None:
    path = tiny_archive()
    with pytest.raises(DataError, match=match), open_archive(path, limits):
        pass


def test_encrypted(tiny_archive, refused) -> None:
    path = tiny_archive()
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, "is encrypted")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packers_without_a_bound_are_refused(tiny_archive, refused, compression: int) -> None:
    refused(tiny_archive(compression=compression), "neither stored nor deflated")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_given_twice(tiny_archive, refused) -> None:
    path = tiny_archive()
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("images_background/Tiny/character01/0001_01.png", b"x")
    refused(path, "names a member twice")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated(tiny_archive, refused, keep: float) -> None:
    path = tiny_archive()
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    refused(path, "no whole zip file")


def test_no_zip_file_and_no_file(refused, tmp_path: Path) -> None:
    path = tmp_path / "images_background.zip"
    refused(path, "there is no archive")
    path.write_text("<html>404</html>")
    refused(path, "no whole zip file")


def test_a_flipped_byte_in_a_member(tiny_archive, refused) -> None:
    path = tiny_archive(compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[1000] ^= 0xFF
    path.write_bytes(data)
    refused(path, "Bad CRC-32")


def test_random_damage_is_never_a_traceback(tiny_archive, tmp_path: Path) -> None:
    """Any few bytes overwritten: a DataError, or a store that equals the undamaged one."""
    path = tiny_archive()
    good = decode([path], tmp_path / "good", 8, EXPECTED).digest
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for i in range(60):
        bad = np.frombuffer(data, np.uint8).copy()
        # Half of the hits in the directory at the end, where the claims are.
        low = 0 if i % 2 else data.index(b"PK\x01\x02")
        bad[rng.integers(low, len(bad), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(bad.tobytes())
        folder = tmp_path / "cache" / str(i)
        try:
            assert decode([path], folder, 8, EXPECTED).digest == good
        except DataError as error:
            assert "\n" not in str(error) and not folder.exists()
            refusals += 1
    assert refusals > 30


def test_wrong_contents(tiny_archive, refused) -> None:
    refused(tiny_archive(characters=3), "holds 3 characters under images_background/, not 2")
    surplus = {"images_background/Tiny/character01/0001_21.png": b"x"}
    refused(tiny_archive(extra=surplus), "holds 21 drawings of Tiny/character01, not 20")
    refused(tiny_archive(side=104), r"no 105x105 PNG \(104x104 pixels\)")


def test_an_image_that_claims_too_many_pixels(tiny_archive, refused) -> None:
    """60000 x 60000 in the header: refused before a pixel is unpacked."""
    refused(tiny_archive(first=png_claiming(60_000, 60_000)), "no 105x105 PNG")


def test_a_member_that_is_no_image(tiny_archive, refused) -> None:
    refused(tiny_archive(first=b"GIF89a"), "no 105x105 PNG")


def test_backslashes_are_folders(tmp_path: Path, monkeypatch) -> None:
    """As packers on Windows write them, in a zip and in a tar."""
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    content = drawing(0)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in ("p\\a\\", "p\\a\\0.png", "p\\b\\0.png", "p\\c\\0.png"):
            info = zipfile.ZipInfo("x")
            info.filename = name  # zipfile itself would turn them round on Windows
            file.writestr(info, b"" if name.endswith("\\") else content)
    tar(tmp_path / "a.txz", *((member(f"p\\{c}\\0.png"), content) for c in "abc"), mode="w:xz")
    for name in ("a.zip", "a.txz"):
        assert folder(tmp_path / name, size=4).store.classes == ("a", "b", "c")
