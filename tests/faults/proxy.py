"""A proxy in front of a tracking server, which injects the faults of a network."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from tests.mlflow_server import free_port

# Answers of the proxy's own, or what happens to the connection: cut before the server has seen the
# request; cut after it has accepted it, so that the answer is lost; no answer at all; a late one.
Kind = Literal["429", "500", "503", "cut", "answer lost", "hang", "slow"]

_PERSONAL = {
    *("host", "connection", "content-length", "transfer-encoding", "accept-encoding"),
    "expect",  # the body is here already
}


@dataclass
class Rule:
    """What to do to requests.

    Attributes:
        kind: The fault.
        path: Part of the paths that it happens to.
        times: How often; then requests pass again.
        seconds: How long a "hang" holds the connection, or a "slow" request waits.
        body: Part of the bodies that it happens to.
        reason: What the answer says.
    """

    kind: Kind
    path: str = ""
    times: int = 1_000_000
    seconds: float = 0.0
    body: str = ""
    reason: str = ""


class FaultyProxy:
    """A proxy on loopback. Requests that no rule is for are passed on.

    Args:
        upstream: Address of the server.

    Attributes:
        address: The address to use in its place.
        did: How often each fault was injected, and "passed" how many requests were not touched.
    """

    def __init__(self, upstream: str) -> None:
        self.did: Counter[str] = Counter()
        self._upstream = urlsplit(upstream).netloc
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def inject(self, *rules: Rule) -> None:
        """Has these faults happen from now on, in the place of those before; none to end all."""
        with self._lock:
            self._rules = list(rules)

    def open(self) -> None:
        """Listens."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._released.clear()
        self._server = _Server(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Listens no more: connections are refused, like those to a server that is down."""
        if self._server is not None:
            self._released.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextmanager
    def injecting(self, *rules: Rule) -> Iterator[None]:
        """Has these faults happen within a block."""
        self.inject(*rules)
        try:
            yield
        finally:
            self.inject()

    def fault_for(self, path: str, body: bytes) -> Rule | None:
        """The rule that a request falls under; it is counted."""
        with self._lock:
            for rule in self._rules:
                if rule.path in path and rule.body.encode() in body and rule.times > 0:
                    rule.times -= 1
                    self.did[rule.kind] += 1
                    return rule
            self.did["passed"] += 1
            return None

    def hold(self, seconds: float) -> None:
        """Waits, unless the proxy is closed meanwhile."""
        self._released.wait(seconds)

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> "_Answer":
        """What the server answers."""
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            length = int(answer.getheader("Content-Length", 0))
            return _Answer(answer.status, answer.getheaders(), answer.read(), length)
        finally:
            connection.close()


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    length: int = 0  # of the body that a HEAD leaves out


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


class _Handler(BaseHTTPRequestHandler):
    owner: ClassVar[FaultyProxy]
    protocol_version = "HTTP/1.1"  # who asks whether to send a body hears that at once

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        rule = self.owner.fault_for(self.path, body)
        self.close_connection = True
        if rule is not None and rule.kind.isdigit():
            said = {"error_code": "INTERNAL_ERROR", "message": rule.reason} if rule.reason else {}
            self._answer(_Answer(int(rule.kind), [], json.dumps(said).encode()))
            return
        if rule is not None and rule.kind == "cut":
            return
        if rule is not None and rule.kind in ("hang", "slow"):
            self.owner.hold(rule.seconds)
            if rule.kind == "hang":
                return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _PERSONAL}
        try:
            answer = self.owner.forward(self.command, self.path, headers, body)
        except OSError:
            answer = _Answer(502, [], b"{}")
        if rule is None or rule.kind != "answer lost":
            self._answer(answer)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _handle  # noqa: N815

    def _answer(self, answer: _Answer) -> None:
        try:
            self.send_response(answer.status)
            for name, value in answer.headers:
                if name.lower() not in _PERSONAL:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) or answer.length))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(answer.body)
        except OSError:  # the client has gone
            pass

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""
