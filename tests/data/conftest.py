"""Real Omniglot where it is at hand, tiny archives shaped like it, and a server that misbehaves."""

import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data import DataError, ImageDataset, data_folder, omniglot


@pytest.fixture(scope="session")
def omniglot_archives() -> Path:
    """The folder with the real archives; skips where there is none."""
    folder = data_folder()
    if folder is None or not (folder / "omniglot" / "images_background.zip").is_file():
        pytest.skip("no real Omniglot: neither METALEARN_DATA nor ../shared/data holds omniglot/")
    return folder / "omniglot"


@pytest.fixture(scope="session")
def omniglot_root(omniglot_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which Omniglot is decoded already, once a session."""
    root = tmp_path_factory.mktemp("omniglot")
    omniglot(root)
    return root


@pytest.fixture
def real(omniglot_root: Path) -> ImageDataset:
    return omniglot(omniglot_root)


def drawing(seed: int, side: int = 105) -> bytes:
    """A one-bit PNG as Omniglot's: black ink on white."""
    paper = np.random.default_rng(seed).random((side, side)) > 0.1
    out = io.BytesIO()
    Image.fromarray(paper).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def tiny_archive(tmp_path: Path) -> Callable[..., Path]:
    """Writes `images_background.zip` with `characters` x 20 drawings and whatever is `extra`.

    `first` takes the place of the first drawing.
    """

    def write(
        characters: int = 2,
        extra: dict[str | zipfile.ZipInfo, bytes] | None = None,
        side: int = 105,
        first: bytes | None = None,
        compression: int = zipfile.ZIP_DEFLATED,
    ) -> Path:
        path = tmp_path / "archives" / "images_background.zip"
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w", compression) as file:
            for c in range(1, characters + 1):
                for d in range(1, 21):
                    name = f"images_background/Tiny/character{c:02d}/{c:04d}_{d:02d}.png"
                    content = first if first and c == d == 1 else drawing(100 * c + d, side)
                    file.writestr(name, content)
            for name, content in (extra or {}).items():
                file.writestr(name, content)
        return path

    return write


@pytest.fixture
def one_line() -> Callable[[pytest.ExceptionInfo[DataError]], str]:
    """The message of a DataError, which must be one line."""

    def check(caught: pytest.ExceptionInfo[DataError]) -> str:
        text = str(caught.value)
        assert text and "\n" not in text
        return text

    return check


class Server:
    """A loopback server; `behave` decides what each request gets."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests: list[str | None] = []
        self.behave: Callable[[BaseHTTPRequestHandler, int], None] = self.honest
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.headers.get("Range"))
                outer.behave(self, len(outer.requests))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/file.zip"

    def honest(self, request: BaseHTTPRequestHandler, number: int) -> None:
        """The whole file, or the rest of it where a range is asked for."""
        span = request.headers.get("Range")
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        size = len(self.content)
        if start >= size:
            return self.answer(request, 416, b"")
        extra = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if span else {}
        self.answer(request, 206 if span else 200, self.content[start:], headers=extra)

    @staticmethod
    def answer(
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        length: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
        request.wfile.flush()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("metalearn.data.download.PAUSE", 0.0)
    server = Server(np.random.default_rng(0).bytes(300_000))
    thread = threading.Thread(target=lambda: server.http.serve_forever(poll_interval=0.02))
    thread.start()
    yield server
    server.released.set()
    server.http.shutdown()
    thread.join()
    server.http.server_close()
