"""metrics_http - the HTTP server of `tlsmgrctl metrics --listen`

GET and HEAD of /metrics, in the format that the client accepts: OpenMetrics or the classic text
format. A thread for each connection, a bounded number of them, each for a bounded time. Answers
within a second of each other share one status object, so that scraping costs the daemon at most one
request a second. SIGTERM and SIGINT end it. Nothing is logged but the line with the address.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client.exposition import choose_encoder

from tlsmgr import __version__
from tlsmgr.client import TlsmgrError
from tlsmgr.ctl.metrics_address import Address, listening
from tlsmgr.ctl.metrics_families import registry
from tlsmgr.status_object import Status

CONNECTIONS = 16
PATIENCE = 10.0  # seconds that a connection may take
CUT_OFF = 1.0  # seconds in which the thread of one that was cut off ends
FRESH = 1.0  # seconds that an answer of the daemon is used

Fetch = Callable[[], Status]


def serve(address: Address, fetch: Fetch) -> None:
    """Serve until SIGTERM or SIGINT. TlsmgrError: cannot listen there."""
    signal.signal(signal.SIGTERM, _interrupt)
    with listening(address) as listener:
        server = Server(listener, Source(fetch))
        print(f"serving on {address.text}", file=sys.stderr, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _cut_off(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Source:
    """The status object, asked for at most once a second; None while no daemon answers."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._until = 0.0

    def status(self, now: float) -> Status | None:
        """Return the status at `now`, in seconds of time.monotonic()."""
        with self._lock:
            if now >= self._until:
                try:
                    self._status = self._fetch()
                except (TlsmgrError, OSError):
                    self._status = None
                self._until = now + FRESH
            return self._status


class Server(ThreadingMixIn, TCPServer):
    """An HTTP server on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, source: Source) -> None:
        self.source = source
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._open: dict[socket.socket, None] = {}  # the oldest first
        BaseServer.__init__(self, listener.getsockname(), Handler)
        self.socket = listener

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the connection; make room for it, if there are too many."""
        if not self._free.acquire(blocking=False):
            for oldest in list(self._open)[:1]:
                _cut_off(oldest)
            if not self._free.acquire(timeout=CUT_OFF):
                self.shutdown_request(request)
                return
        self._open[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its thread."""
        limit = threading.Timer(PATIENCE, _cut_off, (request,))
        limit.daemon = True
        limit.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            limit.cancel()
            del self._open[request]
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Forget a client that has gone or is slow; any other exception is a defect of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request, with one answer."""

    server: Server
    server_version = f"tlsmgrctl/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """Send the metrics."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "The metrics are at /metrics")
            return
        generate, content_type = choose_encoder(self.headers.get("Accept", ""))
        status = self.server.source.status(time.monotonic())
        content = generate(registry(status, time.time()))
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Log nothing: a scrape each few seconds is no event."""
