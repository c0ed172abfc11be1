"""daemon_process - the real daemon in a process of its own, with its state in a private directory.

It is started when it has printed its socket's path. `clean_up` ends it and asserts that nothing is
left: no process, no socket file, no shared memory, and no `panic:` line or traceback in the log
unless the test allows it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil
from support.live_processes import is_alive, named, workers_of

PATIENCE = 30.0  # seconds that any wait may take on a loaded machine
MARK = "TLSMGR_TEST"  # in the environment of a daemon, hence of all processes that come from it

_OPEN = (
    "import sys; from tlsmgr import standalone; standalone._forbid_dumps = lambda: None;"
    " sys.exit(standalone.main())"
)
WATCHFUL = "from tlsmgr.processes import filewatch; filewatch.WATCH_INTERVAL = 0.2\n"
"""Sabotage: the janitor looks at the session files ten times as often."""
SHORT_DRAIN_TIME, SHORT_IDLE_TIME = 3.0, 1.0  # seconds
SHORT_DRAIN = f"""
from tlsmgr.processes import drain
drain.DRAIN_TIME, drain.IDLE_TIME = {SHORT_DRAIN_TIME}, {SHORT_IDLE_TIME}
"""
"""Sabotage: workers let go of their clients in a third of the time."""
LONG_DRAIN = (
    "from tlsmgr.processes import drain; drain.DRAIN_TIME, drain.IDLE_TIME = 300.0, 200.0\n"
)
"""Sabotage: workers stay until their clients leave, even if a slow machine takes long for that."""
REPLACED_SOON = "from tlsmgr.processes import restarts; restarts.LONGEST_PAUSE = 0.1\n"
"""Sabotage: a process that died young is replaced after that pause at most. Put it first: other
modules import the value."""

PROGRAM = ["-m", "tlsmgr.standalone"] if os.geteuid() == 0 else ["-c", _OPEN]
"""The daemon. Tests that are not run by root could not look at its descriptors and memory in /proc
if it forbade dumps."""


def wait_for(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Wait until the condition is true; fail with `what` after the timeout."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:g} s in vain: {what}"
        time.sleep(0.005)


def shared_memory_names() -> set[str]:
    """Return the existing names of shared memory and semaphores of any tlsmgr."""
    return {name for name in os.listdir("/dev/shm") if re.match(r"(sem\.)?tlsmgr-", name)}


class Daemon:
    """One daemon. ``overrides`` are ``name=value`` texts; ``arguments`` any other options.

    ``sabotage`` is Python that runs in it before anything else, for defects that can't be had
    otherwise.
    """

    def __init__(
        self,
        *overrides: str,
        arguments: tuple[str, ...] = (),
        state: str = "",
        sabotage: str = "",
    ) -> None:
        self.state = Path(state or tempfile.mkdtemp(prefix="tm-"))
        self._owns_state = not state
        self._other_names = shared_memory_names()  # left by a process that was killed, perhaps
        self.socket_path = ""
        self.may_panic = False  # a test that provokes a defect says so
        self.status: int | None = None
        self._mark = secrets.token_hex(8)
        self.arguments = [*arguments, *(word for o in overrides for word in ("-o", o))]
        self._program = PROGRAM
        if sabotage:
            serve = "import sys\nfrom tlsmgr import standalone\nsys.exit(standalone.main())"
            self._program = ["-c", f"{sabotage}\n{serve}"]
        self._log_path = self.state / f"log-{self._mark}"
        self._process: subprocess.Popen[bytes] | None = None

    # Start.

    def start(self) -> Daemon:
        """Start, and wait until it serves."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self) -> None:
        """Start, and do not wait."""
        with open(self._log_path, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._program, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment(),
            )

    def environment(self) -> dict[str, str]:
        """The arguments of the daemon."""
        return {**os.environ, "XDG_STATE_HOME": str(self.state), MARK: self._mark}

    def wait_until_ready(self) -> None:
        """Wait for the socket's path on standard output."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert ready, f"no socket path within {PATIENCE} s; log:\n{self.log()}"
        line = self._process.stdout.readline()
        assert line.endswith(b"\n"), f"ended instead of starting; log:\n{self.log()}"
        self.socket_path = line.decode().rstrip("\n")

    # Look.

    @property
    def pid(self) -> int:
        """The parent."""
        assert self._process is not None
        return self._process.pid

    @property
    def directory(self) -> Path:
        """Where its state is by default."""
        return self.state / "tlsmgr"

    def workers(self) -> list[psutil.Process]:
        """Return the live workers in the order of their pids."""
        return workers_of(self.pid)

    def janitor(self) -> psutil.Process:
        """Return the janitor, as soon as there is one."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = named(self.pid, "tlsmgr-janitor")
            return bool(found)

        wait_for(look, "a janitor")
        return found[0]

    def worker_pids(self) -> set[int]:
        """Return the pids of the live workers."""
        return {worker.pid for worker in self.workers()}

    def processes(self) -> list[psutil.Process]:
        """Return all processes that descend from this daemon, orphans too."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and is_alive(process):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def log(self) -> str:
        """Return the log so far."""
        if not self._log_path.exists():
            return ""  # it was never started
        return self._log_path.read_text(errors="surrogateescape")

    def lines(self, start: int = 0) -> list[str]:
        """Return the log lines from that offset on, without the program's name and pid."""
        return [line.partition("]: ")[2] for line in self.log()[start:].splitlines()]

    def wait_for_log(self, pattern: str, start: int = 0, timeout: float = PATIENCE) -> None:
        """Wait until the regular expression is found in a log line."""
        wait_for(
            lambda: re.search(pattern, self.log()[start:], re.MULTILINE),
            f"log line {pattern!r}",
            timeout,
        )

    def memory(self) -> int:
        """Bytes of memory of all its processes, what they share counted once."""
        total = 0
        for process in [psutil.Process(self.pid), *self.workers()]:
            info = process.memory_full_info()
            total += int(info.uss)
        return total

    # End.

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the parent."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the parent's end; returns its exit status, negative for a signal."""
        assert self._process is not None
        self.status = self._process.wait(timeout)
        return self.status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait; returns the exit status."""
        self.send(number)
        return self.wait()

    @property
    def is_running(self) -> bool:
        """The parent lives, as far as we know."""
        return self._process is not None and self._process.poll() is None

    def clean_up(self) -> None:
        """End it if need be, and assert that nothing is left."""
        try:
            if self.is_running:
                assert self.stop() == 0, self.log()
            wait_for(lambda: not self.processes(), "end of all processes", timeout=10)
            orderly = self.status is not None and self.status >= 0
            if orderly and self.socket_path:
                assert not os.path.lexists(self.socket_path), "socket file left"
            wait_for(lambda: not shared_memory_names() - self._other_names, "end of shared memory")
            assert self.may_panic or not re.search("panic: |Traceback", self.log()), self.log()
        finally:
            self._end_by_force()
            if self._owns_state:
                shutil.rmtree(self.state, ignore_errors=True)

    def _end_by_force(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait(PATIENCE)
            assert self._process.stdout is not None
            self._process.stdout.close()


class MakeDaemon(Protocol):
    """Makes a daemon that is ended and checked when the test is over."""

    def __call__(
        self,
        *overrides: str,
        arguments: tuple[str, ...] = (),
        state: str = "",
        sabotage: str = "",
        start: bool = True,
    ) -> Daemon: ...
