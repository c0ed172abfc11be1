"""master_child - a tlsmgr, stock's or ours, as a child of this process instead of master(8).

It is started as by master(8): descriptors 3 and 4 are the flow-control pipe, 5 the status channel,
6 and up the listen sockets; environment, umask 077 and process group are the same. This process
reads the status messages, and the log in place of postlogd(8). With -V, the default here, the
child logs to standard error as well, where no line is lost even if this process is busy; `log` then
returns that.

The child does not outlive this process, because it exits when its status channel closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from support.launcher import write_launcher
from support.live_processes import live_group_of, workers_of
from support.postfix_sandbox import (
    STOP_LIMIT,
    PostfixSandbox,
    daemon_directory,
    postfix_missing,
    wait_until,
)
from support.settled_files import write_settled
from support.stock_tlsmgr import ABOVE_ALL

TAKEN, AVAIL = 0, 1
PROCESSES = 5  # of ours with two workers: parent, janitor, control process
PATIENCE = 30.0  # seconds; limit for any wait on a loaded machine
_TAG = re.compile(r"^.*?tlsmgr(\[\d+\])?: ")
_STATUS = struct.Struct("=iIi")  # struct MASTER_STATUS of master_proto.h


NEEDS_POSTFIX = pytest.mark.skipif(
    postfix_missing("btree") is not None, reason=str(postfix_missing("btree"))
)
BOTH = pytest.mark.parametrize("stock", [True, False], ids=["stock", "ours"])  # both must pass


class Status(NamedTuple):
    """A status message."""

    pid: int
    generation: int
    availability: int


@dataclass(kw_only=True, eq=False)
class MasterChild(PostfixSandbox):
    """A tlsmgr that serves `socket`, and `sockets` - 1 more with a number after the name."""

    stock: bool = False
    prelude: str = ""  # Python code that ours runs first: see launcher
    options: Sequence[str] = ("-l", "-t", "unix", "-u", "-V")
    arguments: Sequence[str] = ()  # after the options
    environment: Mapping[str, str] = field(default_factory=dict)  # in addition
    sockets: int = 1
    keeps_sockets: bool = False  # open from one start to the next, as master(8) does at a reload
    stdin: int | None = None  # a descriptor; None: /dev/null
    tlsmgr_cf: Mapping[str, str] = field(default_factory=dict)
    main_cf_lines: str = ""  # appended to main.cf
    reads_log: bool = True  # from the log socket

    process: psutil.Process | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._programs = {
            True: os.path.join(daemon_directory(), "tlsmgr"),
            False: write_launcher(self.directory, self.prelude),
        }
        self.messages: list[Status] = []
        self.torn = b""  # bytes from the status channel that are no whole message
        (self.queue / "public").mkdir()
        self._postlog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._postlog.bind(str(self.queue / "public" / "postlog"))
        (self.queue / "public" / "postlog").chmod(0o666)
        self.listener_inode = 0  # of the last listen socket
        self._status: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._kept: list[socket.socket] = []
        self._groups: set[int] = set()

    def __exit__(self, kind: object, *rest: object) -> None:
        super().__exit__(kind, *rest)
        self.close_sockets()
        self._postlog.close()

    # Start and end.

    def start(self) -> None:
        """Start the child. Clients wait in the listen queue until it serves."""
        self.write_main_cf()
        self._status, child_status = socket.socketpair()
        with contextlib.ExitStack() as stack:
            stack.enter_context(child_status)
            listeners = self._kept or [self._listener(n) for n in range(self.sockets)]
            if self.keeps_sockets:
                self._kept = listeners
            else:
                for listener in listeners:
                    stack.enter_context(listener)
            pid = self._spawn([child_status.fileno(), *(each.fileno() for each in listeners)])
        self.process = psutil.Process(pid)
        readers: list[Callable[[], None]] = [partial(self._read_status, self._status)]
        readers += [self._read_log] if self.reads_log else []
        self._threads = [threading.Thread(target=read, daemon=True) for read in readers]
        for thread in self._threads:
            thread.start()

    def write_main_cf(self) -> None:
        """Write main.cf, and tlsmgr.cf if there are parameters for it."""
        super().write_main_cf()
        path = self.config / "main.cf"
        write_settled(path, path.read_text() + self.main_cf_lines)
        if self.tlsmgr_cf:
            text = "".join(f"{name} = {value}\n" for name, value in self.tlsmgr_cf.items())
            write_settled(self.config / "tlsmgr.cf", text)

    @property
    def pid(self) -> int:
        """The pid of the child; for ours, the parent process."""
        assert self.process is not None
        return int(self.process.pid)

    def start_other(self) -> None:
        """Stop it and start the other program instead: ours after stock, or reversed."""
        self.stop()
        self.stock = not self.stock
        self.messages.clear()
        self.start()

    def reload(self) -> None:
        """Start a successor when it has ended, as master(8) does at a reload; wait until it serves.

        Until then workers of the one before do.
        """
        self.hang_up()
        assert self.wait() == 0
        self.start_successor()

    def start_successor(self) -> None:
        """Start it, and wait until it serves."""
        self.messages.clear()
        self.start()
        wait_until(lambda: len(self.messages) >= 2, PATIENCE)

    def close_sockets(self) -> None:
        """Close the listening sockets: all that waits there is gone. The next start has others."""
        for listener in self._kept:
            listener.close()
        self._kept = []

    def hang_up(self) -> None:
        """Close the status channel, as master(8) does at a reload."""
        assert self._status is not None
        with contextlib.suppress(OSError):
            self._status.shutdown(socket.SHUT_RDWR)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait until it exits and all log lines are read; return its status, -N for signal N."""
        assert self.process is not None
        status = int(self.process.wait(timeout))
        self.process = None
        self._end_threads()
        return status

    def stop(self) -> int | None:
        """Hang up, kill it if it stays; return its exit status, None if it was not running.

        Workers that drain are ended then, as `postfix stop` ends them.
        """
        if self.process is None:
            self._end_group()
            return None
        self.hang_up()
        try:
            return self.wait(STOP_LIMIT)
        except psutil.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            return self.wait(STOP_LIMIT)
        finally:
            self._end_group()

    def _end_group(self) -> None:
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        self.expect_all_gone()
        self._groups.clear()

    def workers(self) -> list[psutil.Process]:
        """Return its live workers in the order of their pids."""
        return workers_of(self.pid)

    def wait_until_ready(self, workers: int = 2) -> None:
        """Wait until ours has reported to master(8) that it serves; check its workers."""
        wait_until(lambda: len(self.messages) >= 2, PATIENCE)
        assert len(self.workers()) == workers

    def expect_all_gone(self) -> None:
        """Wait until no process of its group is left."""
        wait_until(lambda: not self.group(), PATIENCE)

    def group(self) -> list[int]:
        """Return the pids of all live processes of its groups, of earlier starts too."""
        return [p.pid for p in psutil.process_iter() if live_group_of(p) in self._groups]

    # Output.

    def stderr(self) -> str:
        """Return its standard error."""
        path = self.directory / "stderr"
        return path.read_text(errors="replace") if path.exists() else ""

    def stdout(self) -> bytes:
        """Return its standard output."""
        return (self.directory / "stdout").read_bytes()

    def log(self) -> str:
        """Return the log so far."""
        return self.stderr() if "-V" in (*self.options, *self.arguments) else super().log()

    def texts(self, pattern: str = "") -> list[str]:
        """Return the log lines that match the pattern, without time, host and tag."""
        return [_TAG.sub("", line) for line in self.log_lines(pattern)]

    def exchange_file(self) -> bytes:
        """Return the content of the exchange file, once it exists."""
        path = self.data / "prng_exch"
        wait_until(path.exists, PATIENCE)
        return path.read_bytes()

    # Inside.

    def _listener(self, number: int) -> socket.socket:
        path = self.socket.with_name(self.socket.name + (str(number) if number else ""))
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._bind(listener, path)
        self.listener_inode = os.fstat(listener.fileno()).st_ino
        path.chmod(0o666)
        listener.listen(100)
        listener.setblocking(False)
        return listener

    def _bind(self, listener: socket.socket, path: Path) -> None:
        """Bind to a name relative to queue_directory, as master(8): it holds in the jail too."""
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(self.queue)
            listener.bind(str(path.relative_to(self.queue)))
        finally:
            os.fchdir(here)
            os.close(here)

    def _spawn(self, from_five: list[int]) -> int:
        flow_control = os.pipe()
        wanted = dict(enumerate([*flow_control, *from_five], 3))
        if self.stdin is not None:
            wanted[0] = self.stdin
        above = {n: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, ABOVE_ALL) for n, fd in wanted.items()}
        create = os.O_CREAT | os.O_APPEND | os.O_WRONLY
        umask = os.umask(0o077)
        try:
            pid = os.posix_spawn(
                self._programs[self.stock],
                ["tlsmgr", *self.options, *self.arguments],
                self._environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self.directory / "stdout"), create, 0o600),
                    (os.POSIX_SPAWN_OPEN, 2, str(self.directory / "stderr"), create, 0o600),
                    *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in above.items()),
                    *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() - set(wanted)),
                ],
                setpgroup=0,
            )
        finally:
            os.umask(umask)
            for fd in (*flow_control, *above.values()):
                os.close(fd)
        self._groups.add(pid)
        return pid

    def _environment(self) -> dict[str, str]:
        usual = {
            "LANG": "C",
            "GENERATION": "0",
            "MAIL_CONFIG": str(self.config),
            "POSTLOG_SERVICE": str(self.queue / "public" / "postlog"),
            "POSTLOG_HOSTNAME": "mail.test",
        }
        return {**usual, **self.environment}

    def _read_status(self, status: socket.socket) -> None:
        """Read messages until the channel is closed; `torn` gets an incomplete last one."""
        data = b""
        while part := status.recv(_STATUS.size):
            data += part
            while len(data) >= _STATUS.size:
                self.messages.append(Status(*_STATUS.unpack(data[: _STATUS.size])))
                data = data[_STATUS.size :]
        self.torn += data

    def _read_log(self) -> None:
        """Read log lines until the empty datagram that `_end_threads` sends."""
        with open(self.log_file, "ab", buffering=0) as log:
            while line := self._postlog.recv(1 << 16):
                log.write(line + b"\n")

    def _end_threads(self) -> None:
        assert self._status is not None
        self.hang_up()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.setblocking(self.reads_log)
            last.connect(str(self.queue / "public" / "postlog"))
            with contextlib.suppress(BlockingIOError):
                last.send(b"")
        for thread in self._threads:
            thread.join()
        self._status.close()


def _inheritable() -> set[int]:
    """Return the descriptors that this process would pass on; master(8) passes on none."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the directory itself
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.add(int(name))
    return found
