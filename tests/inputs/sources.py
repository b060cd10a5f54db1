"""Bad servers and bad archives, given to the functions that download and decode."""

import hashlib
import os
import pickle
import socket
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from metalearn.data import cifar_fs, cub, intents, mini_imagenet, tiny_imagenet
from metalearn.data.download import download
from metalearn.data.omniglot import decode
from tests.inputs.case import Case, Place
from tests.inputs.cifar import Evil, official, zipped
from tests.inputs.files import member, omniglot_zip, png_claiming, tar, write_images
from tests.inputs.server import Server, serving
from tests.inputs.tiny import FIRST, made, table, without

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
BACKGROUND = "images_background.zip"

Request = BaseHTTPRequestHandler


def fetch(place: Place, *urls: str, **options: Any) -> None:
    """One file of 300,000 bytes to the cache."""
    download(urls, place.cache / "omniglot" / BACKGROUND, **{"md5": MD5, **options})


def from_server(
    given: str, said: str, behave: Callable[[Server, Request], object], timeout: float = 20,
    **more: Any,
) -> Case:  # fmt: skip
    """A download from a server that does `behave` at each request."""

    def act(place: Place) -> None:
        with serving(CONTENT) as server:
            server.behave = lambda request, _: behave(server, request)
            fetch(place, server.url, timeout=timeout, max_bytes=1 << 20)

    return Case(f"a server that {given}", said, act, **more)


def stall(server: Server, request: Request) -> None:
    server.answer(request, 200, CONTENT[:70_000], length=len(CONTENT))
    server.released.wait(10)


def broken_off(server: Server, request: Request) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"ffff\r\nonly this")


def endless(server: Server, request: Request) -> None:
    server.answer(request, 200, bytes(1 << 21))


def redirected(to: str) -> Callable[[Server, Request], object]:
    return lambda server, request: server.answer(
        request, 302, b"", headers={"Location": to.format(server=server.url)}
    )


def from_nobody(place: Place) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses every connection
        fetch(place, f"http://127.0.0.1:{closed.getsockname()[1]}/{BACKGROUND}")


def secret(place: Place) -> None:
    (place.user / "secret").write_text("x")


PART = {"left": f"cache/omniglot/{BACKGROUND}.part", "why": "which the next call continues"}
DOWNLOADS = [
    from_server("has no such file", "HTTP 404", lambda s, r: s.answer(r, 404, b"")),
    from_server("is always busy", "HTTP 503", lambda s, r: s.answer(r, 503, b"")),
    from_server(
        "breaks off after 10 bytes of those that it promised",
        "cut short at 10 of 1000 bytes",
        lambda s, r: s.answer(r, 200, CONTENT[:10], length=1000),
        **PART,
    ),
    from_server(
        "says that the file is shorter than it is",
        "wrong md5",
        lambda s, r: s.answer(r, 200, CONTENT, length=1000),
    ),
    from_server(
        "sends a page instead of the file",
        "wrong md5",
        lambda s, r: s.answer(r, 200, b"<html>not found</html>"),
    ),
    from_server(
        "sends the file with one bit changed",
        "wrong md5",
        lambda s, r: s.answer(r, 200, CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])),
    ),
    from_server("stalls", "silent for 0.1 s", stall, timeout=0.1, **PART),
    from_server("breaks off between two chunks", "connection broke", broken_off, **PART),
    from_server(
        "answers in no language",
        "connection broke",
        lambda s, r: r.wfile.write(b"hello\r\n\r\n"),
    ),
    from_server("never ends", "it sends more than 1048576 bytes", endless),
    from_server(
        "gives a length of 5000 digits",
        "wrong md5",
        lambda s, r: s.answer(r, 200, b"x", length="9" * 5000),
    ),
    from_server("redirects to file:///etc/passwd", "HTTP 302", redirected("file:///etc/passwd")),
    from_server("redirects in circles", "HTTP 302", redirected("{server}")),
    from_server("redirects to http://[", "redirected to no address", redirected("http://[")),
    Case("a server that is not there", "no connection", from_nobody),
    Case(
        "a mirror file:///...",
        "no http or https address",
        lambda place: fetch(place, (place.user / "secret").as_uri()),
        secret,
    ),
]


def omniglot_case(
    given: str, said: str, spoil: Callable[[Path], object] | None = None,
    extra: Mapping[str | zipfile.ZipInfo, bytes] | None = None, **zip_options: Any,
) -> Case:  # fmt: skip
    """A zip in Omniglot's layout, made with `zip_options` and then spoilt."""

    def archive(place: Place) -> Path:
        return place.data / "omniglot" / BACKGROUND

    def ready(place: Place) -> None:
        inside = {
            name.format(place.folder) if isinstance(name, str) else name: content
            for name, content in (extra or {}).items()
        }
        omniglot_zip(archive(place), extra=inside, **zip_options)
        if spoil:
            spoil(archive(place))

    def act(place: Place) -> None:
        decode([archive(place)], place.cache / "store", 28, {"images_background": 2})

    return Case(f"a zip {given}", said, act, ready)


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("images_background/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def flag(bit: int) -> Callable[[Path], object]:
    """Set a flag of the first entry in the directory of a zip."""

    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= bit
        path.write_bytes(data)

    return spoil


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 0xFF
    path.write_bytes(data)


def shorter(path: Path) -> None:
    """The directory claims 10 bytes for a member of 5 million."""
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 5_000_000), struct.pack("<I", 10)))


OUTSIDE = "points outside the archive"
ZIPS = [
    omniglot_case("with a member ../evil.png", OUTSIDE, extra={"../evil.png": b"x"}),
    omniglot_case("with a member /.../evil.png", OUTSIDE, extra={"{}/evil.png": b"x"}),
    omniglot_case("with a member C:\\evil.png", OUTSIDE, extra={"C:\\evil.png": b"x"}),
    omniglot_case("with a link", "a link or a device", extra={link(): b"/etc/passwd"}),
    omniglot_case("with 50 MB of zeros", "times its size", extra={"zeros": bytes(50_000_000)}),
    omniglot_case("that says 10 bytes for 5 MB", "Bad CRC-32", shorter, first=bytes(5_000_000)),
    omniglot_case("with an encrypted member", "is encrypted", flag(1)),
    omniglot_case("with a member that patches another", "is damaged: compressed patch", flag(32)),
    omniglot_case("packed by LZMA", "neither stored nor deflated", compression=zipfile.ZIP_LZMA),
    omniglot_case("cut in half", "no whole zip file", halve),
    omniglot_case("with one byte changed", "Bad CRC-32", flip, compression=zipfile.ZIP_STORED),
    omniglot_case("that is text", "no whole zip file", lambda path: path.write_text("<html>")),
    omniglot_case("with a PNG of 60000x60000 pixels", "PNG", first=png_claiming(60_000, 60_000)),
    omniglot_case("with a text named .png", "no 105x105 PNG", first=b"hello"),
    omniglot_case("with 3 characters, not 2", "holds 3 characters", characters=3),
]


def tar_case(
    given: str, said: str, info: tarfile.TarInfo, content: bytes = b"",
    spoil: Callable[[Path], object] | None = None,
) -> Case:  # fmt: skip
    """A tar with one good and one bad member, given as CUB."""

    def archive(place: Place) -> Path:
        return place.data / "cub" / "CUB_200_2011.tgz"

    def ready(place: Place) -> None:
        archive(place).parent.mkdir()
        bad = info.replace(name=info.name.format(place.folder))
        tar(archive(place), (member("CUB_200_2011/images/001.Bird/a.txt"), b"!"), (bad, content))
        if spoil:
            spoil(archive(place))

    return Case(f"a tar {given}", said, lambda place: cub(size=8), ready)


def late(path: Path) -> None:
    info = member("late")
    info.mtime = 1 << 70
    tar(path, (info, b"x"))


TARS = [
    tar_case("with a member ../evil", OUTSIDE, member("../evil"), b"x"),
    tar_case("with a member /.../evil", OUTSIDE, member("{}/evil"), b"x"),
    tar_case("with a link", "link or a device", member("a", tarfile.SYMTYPE, "/etc")),
    tar_case("with a hard link", "link or a device", member("a", tarfile.LNKTYPE, "b")),
    tar_case("with a device", "link or a device", member("a", tarfile.CHRTYPE)),
    tar_case("with 4 MB of zeros", "times its size", member("a"), bytes(4_000_000)),
    tar_case("cut in half", "no whole tar file", member("a"), CONTENT, halve),
    tar_case("with a date beyond all clocks", "no whole tar file", member("a"), b"", late),
    tar_case("of no species", "holds 0 species", member("a"), b"x"),
]


def cifar_case(given: str, said: str, name: str, make: Callable[[Path], object]) -> Case:
    """`name` in the data folder, made by `make`."""

    def ready(place: Place) -> None:
        (place.data / "cifar100").mkdir()
        with mock.patch.dict(os.environ, EVIL=str(place.user / "evil")):
            make(place.data / "cifar100" / name)

    return Case(f"{name} {given}", said, lambda place: cifar_fs(), ready)


TAR, ZIP = "cifar-100-python.tar.gz", "cifar100.zip"
CIFAR = [
    cifar_case(
        "with a pickle that makes a folder when it is read",
        "asks for posix.mkdir",
        TAR,
        lambda path: official(path, train=pickle.dumps(Evil(), 2)),
    ),
    cifar_case("without its test images", "lacks test", TAR, lambda p: official(p, test=None)),
    cifar_case("that is text", "no whole tar.gz", TAR, lambda path: path.write_text("<html>")),
    cifar_case("with 3 of the 100 classes", "holds 3 classes", TAR, official),
    cifar_case("with 3 classes, one of fewer images", "[3, 4]", ZIP, lambda p: zipped(p, skip=1)),
]


def few_birds(place: Place) -> None:
    write_images(place.data / "mini_imagenet", "n01532829", "n02165456")


def mini(place: Place) -> None:
    mini_imagenet(size=8)


def tiny_case(given: str, said: str, change: Callable[[dict[str, bytes]], object]) -> Case:
    """Tiny-ImageNet in the data folder, its files changed."""

    def ready(place: Place) -> None:
        made(place.data / "tiny-imagenet-200.zip", change)

    return Case(f"Tiny-ImageNet {given}", said, lambda place: tiny_imagenet(), ready)


def texts(line: str) -> Callable[[Place], object]:
    """BANKING77 of one line."""

    def ready(place: Place) -> None:
        (place.data / "intents" / "banking77").mkdir(parents=True)
        (place.data / "intents" / "banking77" / "full.jsonl").write_text(line)

    return ready


MORE = [
    Case(
        "BANKING77 with an empty text",
        "is an empty text; mend it",
        lambda place: intents(),
        texts('{"sentence": " ", "label": "age_limit"}'),
    ),
    Case("no BANKING77", "there is no intents/banking77/full.jsonl", lambda place: intents()),
    tiny_case("with a box of no area", "which has no area", table(b"a.JPEG\t9\t0\t8\t9")),
    tiny_case("with no box of an image", "has no box in", table(b"a.JPEG\t0\t0\t8\t9")),
    tiny_case("with a box beyond its image", "beyond its image", table(b"a.JPEG\t0\t0\t64\t9")),
    tiny_case("with a class without images", "has no images of 1 of", without(FIRST, "JPEG")),
    Case("miniImageNet of 2 classes", "holds 2 classes of 3 to 3 images", mini, few_birds),
    Case("no miniImageNet", "cannot be downloaded freely", mini),
]

SOURCES: tuple[Case, ...] = (*DOWNLOADS, *ZIPS, *TARS, *CIFAR, *MORE)
