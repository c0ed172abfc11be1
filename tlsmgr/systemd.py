"""systemd - what systemd(1) and a service of ours say to each other, without a library.

systemd gives listening sockets as descriptors from 3 on (sd_listen_fds(3)), and takes datagrams
on a socket (sd_notify(3)). Without systemd all of this does nothing.

``Watchdog`` is a job of the parent: it asks the service for a seed, as a client does, and tells
systemd only about an answer. It never waits: what was asked in one run is looked at in the next.
The variables are left in the environment, for an exec of this process.

Used by the standalone daemon's parent. Fatal: a passed descriptor that is no socket to serve on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

from tlsmgr import log
from tlsmgr.log import Fatal

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
QUESTION = b"request\0seed\0size\x0032\0\0"
GOOD_ANSWER, END = b"status\x000\0seed\0", b"\0\0"
RUNS = 4  # of the watchdog in the time after which systemd ends the service
WARNING_INTERVAL = 60.0  # seconds


def notify(environment: Mapping[str, str], *assignments: str) -> None:
    """Tell systemd the assignments, such as READY=1. A failure is its loss, and no error."""
    path = environment.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = f"\0{path[1:]}" if path[0] == "@" else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(address)
        sender.send("\n".join(assignments).encode())


def notify_reload(environment: Mapping[str, str]) -> None:
    """Tell systemd that this process reads its configuration again; READY=1 says when it did."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify(environment, "RELOADING=1", f"MONOTONIC_USEC={now}")


def listeners(environment: Mapping[str, str]) -> tuple[socket.socket, ...]:
    """Return the sockets that systemd passed to this process, none if it did not. Raises Fatal."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return ()
    count = int(environment.get("LISTEN_FDS", "0"))
    return tuple(_listener(FIRST_DESCRIPTOR + index) for index in range(count))


def _listener(descriptor: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=descriptor)
        accepts = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise Fatal(f"descriptor {descriptor} of systemd: {error.strerror}") from None
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not accepts:
        raise Fatal(f"descriptor {descriptor} of systemd is not a listening UNIX-domain socket")
    listener.setblocking(False)
    return listener


class Watchdog:
    """Tells systemd again and again that the service on this path answers."""

    def __init__(self, path: str, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = environment
        self._asked: socket.socket | None = None
        self._limit = log.Limit(WARNING_INTERVAL)

    @property
    def interval(self) -> float:
        """Return the seconds from one run to the next; 0 when systemd does not watch."""
        if self._environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return 0.0
        return int(self._environment.get("WATCHDOG_USEC", "0")) / 1e6 / RUNS

    def run(self, _now: float) -> float:
        """Look at the last answer, tell systemd if it is good, ask again; return the interval."""
        if self._asked is not None:
            with self._asked as connection:
                if _is_answered(connection):
                    notify(self._environment, "WATCHDOG=1")
                else:
                    text = f"no answer on {self._path}; systemd restarts the service if it lasts"
                    self._limit.warning("watchdog", text, time.monotonic())
        self._asked = self._ask()
        return self.interval

    def _ask(self) -> socket.socket | None:
        """Return a connection with a request on it, or one that never gets an answer, or none."""
        connection = None
        with contextlib.suppress(OSError):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            connection.connect(self._path)
            connection.send(QUESTION)
        return connection


def _is_answered(connection: socket.socket) -> bool:
    """Return whether a seed has come."""
    try:
        text = connection.recv(4096)
    except OSError:
        return False
    return GOOD_ANSWER in text and text.endswith(END)
