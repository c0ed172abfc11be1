"""logsockets - log destinations behind a UNIX socket: syslog(3)'s /dev/log, and postlogd(8).

The daemon connects before it enters the jail. Forked workers share the connection; from the fork on
each process counts its own dropped lines and its own waiting.

No call blocks on a log daemon that is slow, stopped or gone. The system queues about ten lines. A
line that finds the queue full waits for the log daemon, but all lines of a process together wait at
most ``WAIT_LIMIT`` in each second, so that a slow log daemon cannot delay clients further. After
that, lines are dropped and counted. The next line that goes through is preceded by a warning with
the count. (Postfix blocks here.) The last lines of a process may wait for ``LAST_WAIT_LIMIT``.

A lost connection is made again at the next line if the path of the socket exists, which in a jail
it usually does not. The old connection is kept until there is a new one.

The time zone is read when a destination is made, because a jail has no time zone files.
"""

import os
import select
import socket
import time
from collections.abc import Callable
from typing import ClassVar

from tlsmgr.log import FATAL, WARNING, Severity, printable

WAIT_LIMIT = 0.05  # seconds that lines may wait for the log daemon, in each second
LAST_WAIT_LIMIT = 0.5  # the same for fatal and panic lines, after which a process usually ends
PERIOD = 1.0  # seconds
RESOLUTION = 0.001  # seconds; poll(2) counts in milliseconds

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""As in the C locale; this process may have another one."""

FACILITIES = {
    "kern": 0,
    "user": 1,
    "mail": 2,
    "daemon": 3,
    "auth": 4,
    "syslog": 5,
    "lpr": 6,
    "news": 7,
    "uucp": 8,
    "cron": 9,
    "authpriv": 10,
    "ftp": 11,
    **{f"local{number}": 16 + number for number in range(8)},
}
"""Values of syslog_facility and their numbers (RFC 5424, section 6.2.1)."""


class WaitBudget:
    """How long this process has waited for the log daemon in the current second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._spent = 0.0

    def left(self, limit: float) -> float:
        """Return how many seconds of the limit are left in the current second."""
        now = self._clock()
        if not 0 <= now - self._start < PERIOD:
            self._start, self._spent = now, 0.0
        return max(0.0, limit - self._spent)

    def wait(self, descriptor: int, limit: float) -> bool:
        """Wait until the descriptor is writable or the limit is used up; return whether it is."""
        left = self.left(limit)
        if left < RESOLUTION:
            return False
        watch = select.poll()
        watch.register(descriptor, select.POLLOUT)
        began = self._clock()
        ready = watch.poll(left * 1000)
        self._spent += self._clock() - began
        return bool(ready)


class LineSocket:
    """A connection that takes whole lines.

    `paths` are tried in order at each attempt to connect. A subclass defines the form of a line.
    """

    KINDS: ClassVar[tuple[socket.SocketKind, ...]] = (socket.SOCK_DGRAM,)
    """Socket types to try, in order."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        time.tzset()
        time.localtime()
        self._paths = paths
        self._budget = WaitBudget(time.monotonic)
        self._dropped = 0  # lines since the last report
        self._is_reported = False  # a report went through, and no line since
        self._reason = ""  # why the last line was dropped
        self._socket = self._connect()

    def write(self, severity: Severity, tag: str, text: bytes) -> None:
        """Send one line, or drop and count it; report dropped lines before the next one."""
        limit = LAST_WAIT_LIMIT if severity.level <= FATAL.level else WAIT_LIMIT
        if self._dropped and not self._is_reported:
            self._is_reported = self._send(self._line(WARNING, tag, self._report()), limit)
            if not self._is_reported:
                self._dropped += 1
                return
            self._dropped = 0
        if self._send(self._line(severity, tag, text), limit):
            self._is_reported = False
        else:
            self._dropped += 1

    @property
    def path(self) -> str:
        """The first path of the socket."""
        return self._paths[0]

    def descriptors(self) -> tuple[int, ...]:
        """Return that of the connection, if there is one."""
        return () if self._socket is None else (self._socket.fileno(),)

    def close(self) -> None:
        """Close the connection; the next line makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _line(self, severity: Severity, tag: str, text: bytes) -> bytes:
        raise NotImplementedError

    def _report(self) -> bytes:
        lines = "log line was" if self._dropped == 1 else "log lines were"
        return f"{self._dropped} {lines} dropped because {self._reason}".encode()

    def _send(self, line: bytes, limit: float) -> bool:
        taken = self._try(line)
        if taken is False and self._socket and self._budget.wait(self._socket.fileno(), limit):
            taken = self._try(line)
        if taken is None and self._reconnect():
            taken = self._try(line)
        if taken is None:
            self._reason = f"no log daemon was listening on {self.path}"
        elif not taken:
            self._reason = "the log daemon does not read fast enough"
        return taken is True

    def _try(self, line: bytes) -> bool | None:
        """Return True for a line that was sent, False for a full queue, None without a reader."""
        if self._socket is None:
            return None
        if self._socket.type == socket.SOCK_STREAM:
            line += b"\0"
        try:
            return self._socket.send(line) == len(line)
        except BlockingIOError:
            return False
        except OSError:
            return None

    def _reconnect(self) -> bool:
        successor = self._connect()
        if successor is None:
            return False
        self.close()
        self._socket = successor
        return True

    def _connect(self) -> socket.socket | None:
        for path in self._paths:
            for kind in self.KINDS:
                try:
                    candidate = socket.socket(socket.AF_UNIX, kind)
                except OSError:  # descriptors have run out
                    return None
                candidate.setblocking(False)
                try:
                    candidate.connect(path)
                except OSError:
                    candidate.close()
                else:
                    return candidate
        return None


class Syslog(LineSocket):
    """The system log, with lines as glibc sends them.

    `<20>Nov  2 00:30:05 postfix/tlsmgr[123]: warning: text`
    """

    KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)

    def __init__(self, facility: str = "mail", path: str = "/dev/log") -> None:
        """Connect; `facility` is a key of FACILITIES."""
        super().__init__((path,))
        self._facility = FACILITIES[facility] * 8

    def _line(self, severity: Severity, tag: str, text: bytes) -> bytes:
        now = time.localtime()
        stamp = f"{MONTHS[now.tm_mon - 1]} {now.tm_mday:2d} {time.strftime('%H:%M:%S', now)}"
        priority = self._facility + severity.level
        return f"<{priority}>{stamp} {tag}[{os.getpid()}]: {severity.prefix}".encode() + text


class Postlog(LineSocket):
    """Postfix's own log service: `Nov 02 00:30:10 host postfix/tlsmgr[123]: fatal: text`.

    `paths` name the socket: first $queue_directory/public/$postlog_service_name, then the same
    relative to the queue directory, for use in the jail. Lines show the first label of `host`.
    """

    def __init__(self, paths: tuple[str, ...], host: str) -> None:
        super().__init__(paths)
        self._host = printable(host, keep_utf8=False).decode().partition(".")[0]

    def _line(self, severity: Severity, tag: str, text: bytes) -> bytes:
        now = time.localtime()
        stamp = f"{MONTHS[now.tm_mon - 1]} {now.tm_mday:02d} {time.strftime('%H:%M:%S', now)}"
        prefix = f"{stamp} {self._host} {tag}[{os.getpid()}]: {severity.prefix}"
        return prefix.encode() + text
