"""stock_tlsmgr - stock tlsmgr(8) alone, without master(8), for comparisons and measurements.

It is a child of this process, with command line, environment and descriptors as from master(8):
3 and 4 the flow-control pipe, 5 the status channel, 6 the listen socket. It exits when its status
channel closes, so it does not outlive this process, even if that is killed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from support.postfix_sandbox import STOP_LIMIT, PostfixSandbox, daemon_directory

ABOVE_ALL = 64  # descriptors from here on are used for nothing else
SO_SNDBUFFORCE = 32  # Linux socket(7); Python has no name for it


@dataclass(kw_only=True, eq=False)
class StockTlsmgr(PostfixSandbox):
    """Stock tlsmgr(8), listening at `socket`; `process` is set while it runs."""

    arguments: Sequence[str] = ()  # further ones, such as "-c" (chroot), "-o", "name=value"
    backlog: int = 100  # of the listen socket; master(8) uses 100 by default

    process: psutil.Process | None = None

    def start(self) -> None:
        """Start it. Clients wait in the listen queue until it has opened its files."""
        self.write_main_cf()
        self._status, child_status = socket.socketpair()
        pause = _enlarge(child_status)
        with child_status, self._listener() as listener:
            self.process = psutil.Process(self._spawn(child_status, listener))
        self._drain = threading.Thread(target=_drain, args=(self._status, pause), daemon=True)
        self._drain.start()

    def stop(self) -> int | None:
        """Close the status channel, as `postfix reload` does; kill it if it does not exit.

        Return the exit status, -N for signal N, None if it was not running.
        """
        process, self.process = self.process, None
        if process is None:
            return None
        self._status.shutdown(socket.SHUT_RDWR)
        try:
            status = process.wait(STOP_LIMIT)
        except psutil.TimeoutExpired:
            process.kill()
            status = process.wait(STOP_LIMIT)
        self._drain.join()
        self._status.close()
        return int(status)

    def _listener(self) -> socket.socket:
        self.socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.socket))
        self.socket.chmod(0o666)
        listener.listen(self.backlog)
        listener.setblocking(False)
        return listener

    def _spawn(self, status: socket.socket, listener: socket.socket) -> int:
        flow_control = os.pipe()
        wanted = (*flow_control, status.fileno(), listener.fileno())
        safe = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, ABOVE_ALL) for fd in wanted]
        try:
            return os.posix_spawn(
                os.path.join(daemon_directory(), "tlsmgr"),
                ["tlsmgr", "-l", "-t", "unix", "-u", "-V", *self.arguments],
                {"LANG": "C", "GENERATION": "0", "MAIL_CONFIG": str(self.config)},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    # With maillog_file set and no postlogd(8), -V is the only log, to stderr.
                    (os.POSIX_SPAWN_OPEN, 2, self.log_file, os.O_CREAT | os.O_WRONLY, 0o600),
                    *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(safe, 3)),
                ],
                setpgroup=0,
            )
        finally:
            for fd in (*flow_control, *safe):
                os.close(fd)


def _enlarge(status: socket.socket) -> float:
    """Enlarge the buffer of the channel; return the seconds for which it may stay unread."""
    try:
        status.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 << 20)
    except PermissionError:  # root, but of a container
        return 0.0
    return 0.02


def _drain(status: socket.socket, pause: float) -> None:
    """Read status messages to the end, because stock tlsmgr blocks when its channel is full.

    It pauses after each read: reading every message at once would take the interpreter's lock
    from the thread that measures.
    """
    while status.recv(1 << 20):
        time.sleep(pause)
