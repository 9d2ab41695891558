"""A proxy before an S3 server that answers 503 SlowDown, or breaks connections off, for as many requests as told.

It stands where `endpoint_url` points to and hands requests on as they are, Host header and all, so that signatures
stay right.
"""

import http.client
import http.server
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

Trouble = Literal["busy", "no_answer", "half_answer", "unheard_answer"]
"""503 SlowDown; closed before the request is handed on; closed in the middle of the answer's body; closed after the
request was served, without a word."""

_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class FaultProxy:
    """What happens to the next requests, and what has happened.

    Attributes:
        url: of the proxy.
        seen: how many requests met with which trouble; "none" for those that went through.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: Counter[str] = Counter()
        self._next: deque[Trouble] = deque()
        self._lock = threading.Lock()

    def trouble(self, *kinds: Trouble) -> None:
        """Let the next requests meet with these, one each."""
        with self._lock:
            self._next.extend(kinds)

    @property
    def is_quiet(self) -> bool:
        """Whether all the trouble has been met with."""
        return not self._next

    def take(self) -> Trouble | None:
        """What the request at hand meets with."""
        with self._lock:
            kind = self._next.popleft() if self._next else None
            self.seen[kind or "none"] += 1
            return kind


@contextmanager
def fault_proxy(upstream_url: str) -> Iterator[FaultProxy]:
    """A proxy on a free port of the loopback interface, for the time of the block."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.upstream = urlsplit(upstream_url).netloc
        server.faults = FaultProxy(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.faults
        finally:
            server.shutdown()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    upstream: str
    faults: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.server.faults.take()
        if kind == "busy":
            self._answer(503, [("Content-Type", "application/xml")], _BUSY, len(_BUSY))
            return
        if kind == "no_answer":
            self.close_connection = True
            return
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        except OSError:
            self.close_connection = True  # the server is away, so this is too
            return
        finally:
            connection.close()
        headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_BY_HOP]
        length = int(answer.headers.get("Content-Length") or len(content))
        if kind in ("half_answer", "unheard_answer"):
            self.close_connection = True
            if kind == "unheard_answer":
                return
            content = content[: len(content) // 2]
            length = max(1, length)
        self._answer(answer.status, headers, content, length)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
