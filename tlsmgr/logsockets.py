"""Log destinations behind a UNIX socket: syslog(3)'s /dev/log, and postlogd(8).

Made and connected by the daemon before it enters the jail; forked workers share the connection,
and each process keeps its own count of dropped lines.

Promises: a reader that is busy for a moment gets every line; one that sleeps costs a single short
wait. The system queues about ten lines, so a line that finds the queue full waits for the reader,
at most ``PATIENCE``, unless the line before it did so in vain. What can't be sent is dropped and
counted; the next line that gets through is preceded by a warning that says how many were lost.
(Postfix itself blocks here.) The last words of a process may take longer. A lost connection is
made again at the next line, if the socket can be reached: in a jail that is the case when the path
exists there. The old connection is kept until there is a new one.

The time zone is read when a destination is made, as a jail has no time zone files.
"""

import os
import select
import socket
import time
from typing import ClassVar

from tlsmgr.log import FATAL, WARNING, Severity, printable

PATIENCE = 0.05  # seconds that a line may wait for the reader
LAST_PATIENCE = 0.5  # the same for a line after which the process ends

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""As in the C locale, whatever the locale of this process."""

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


class LineSocket:
    """A connection that takes whole lines and never blocks.

    `paths` are tried in order at each attempt to connect. A subclass says how a line looks.
    """

    KINDS: ClassVar[tuple[socket.SocketKind, ...]] = (socket.SOCK_DGRAM,)
    """Socket types to try, in order."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        time.tzset()
        time.localtime()
        self._paths = paths
        self._dropped = 0
        self._is_read = True  # nothing to the contrary was seen
        self._socket = self._connect()

    def write(self, severity: Severity, tag: str, text: bytes) -> None:
        """Send one line, and before it the count of lines lost so far."""
        if self._dropped and self._send(self._line(WARNING, tag, self._loss()), 0.0):
            self._dropped = 0
        patience = PATIENCE if self._is_read else 0.0
        if severity.level <= FATAL.level:
            patience = LAST_PATIENCE
        self._is_read = self._send(self._line(severity, tag, text), patience)
        if not self._is_read:
            self._dropped += 1

    @property
    def path(self) -> str:
        """Where the reader is expected first."""
        return self._paths[0]

    def descriptors(self) -> tuple[int, ...]:
        """The connection, if there is one."""
        return () if self._socket is None else (self._socket.fileno(),)

    def close(self) -> None:
        """Give up the connection; the next line makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _line(self, severity: Severity, tag: str, text: bytes) -> bytes:
        raise NotImplementedError

    def _loss(self) -> bytes:
        return f"{self._dropped} log lines were dropped: {self.path} was not read in time".encode()

    def _send(self, line: bytes, patience: float) -> bool:
        taken = self._try(line)
        if taken is False and patience and self._wait(patience):
            taken = self._try(line)
        if taken is None and self._reconnect():
            taken = self._try(line)
        return taken is True

    def _try(self, line: bytes) -> bool | None:
        """True when the line was taken, False when the reader is asleep, None when it is gone."""
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

    def _wait(self, seconds: float) -> bool:
        """Wait until the reader has made room; False when it did not."""
        assert self._socket is not None
        watch = select.poll()
        watch.register(self._socket, select.POLLOUT)
        return bool(watch.poll(seconds * 1000))

    def _reconnect(self) -> bool:
        fresh = self._connect()
        if fresh is None:
            return False
        self.close()
        self._socket = fresh
        return True

    def _connect(self) -> socket.socket | None:
        for path in self._paths:
            for kind in self.KINDS:
                candidate = socket.socket(socket.AF_UNIX, kind)
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
    relative to the queue directory, for use in the jail. Of `host` the first label is shown.
    """

    def __init__(self, paths: tuple[str, ...], host: str) -> None:
        super().__init__(paths)
        self._host = printable(host, keep_utf8=False).decode().partition(".")[0]

    def _line(self, severity: Severity, tag: str, text: bytes) -> bytes:
        now = time.localtime()
        stamp = f"{MONTHS[now.tm_mon - 1]} {now.tm_mday:02d} {time.strftime('%H:%M:%S', now)}"
        prefix = f"{stamp} {self._host} {tag}[{os.getpid()}]: {severity.prefix}"
        return prefix.encode() + text
