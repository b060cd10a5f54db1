"""A server on the loopback address that can misbehave."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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
        length: int | str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
        request.wfile.flush()


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    """A server that runs."""
    server = Server(content)
    thread = threading.Thread(target=lambda: server.http.serve_forever(poll_interval=0.02))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()
        thread.join()
        server.http.server_close()
