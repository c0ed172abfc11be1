"""trial - tries a start before a reload by hand, so that a bad one does not end the service.

At SIGHUP the program is run as it was started, with ``--check``, which reads the configuration and
loads what a start needs. If that succeeds and names the same socket and data directory, the daemon
reloads. Else one error line says why, and it goes on as it is: the reason is the last line that
the trial wrote. A trial that does not end in time is killed, with such a line.

What it writes goes into a memory file, so that nobody has to read while it runs. A signal that
comes meanwhile makes another trial follow. Runs in the parent; nothing here waits or is fatal.
"""

from __future__ import annotations

import os
import re
import signal
import time

from tlsmgr import log
from tlsmgr.processes import setup
from tlsmgr.processes.children import describe_end
from tlsmgr.processes.parent import Parent
from tlsmgr.processes.program import Program

TRIAL_TIME = 10.0  # seconds for a trial
LOOK_INTERVAL = 1.0  # seconds
NO_REPAIR = {"TLSMGR_IMPORT_FAILED": "in a trial"}  # see scripts/run.py
MOST_TEXT, LONGEST_REASON = 1 << 20, 500  # bytes, characters

_TAG = re.compile(r"^\S+\[\d+\]: (fatal: )?")  # of a log line


class Trial:
    """Reloads that parent when a trial of the program succeeds."""

    def __init__(self, program: Program, parent: Parent) -> None:
        self._program = program
        self._parent = parent
        self._pid = 0  # 0: none runs
        self._output = -1
        self._deadline = 0.0  # time.monotonic()
        self._again = False
        parent.jobs.add("trial of a start", self._look)

    def begin(self) -> None:
        """Start a trial, or have another one follow. Called at SIGHUP."""
        if self._parent.is_stopping:  # a successor has not read the configuration yet
            return
        self._again = bool(self._pid)
        if self._again:
            return
        self._deadline = time.monotonic() + TRIAL_TIME
        try:
            self._output = os.memfd_create("tlsmgr-trial")
            self._pid = self._parent.children.spawn_beside(self._run, self._note_end)
        except OSError as error:
            self._end(f"no process for a trial: {error.strerror}")

    def _run(self) -> int:
        """In the child: become the program."""
        os.dup2(self._output, 1)
        os.dup2(self._output, 2)
        path, directory = self._program.arguments[0], self._program.directory
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            setup.close_all_but(())
            os.umask(self._program.umask)
            os.chdir(directory)
            os.execve(path, self._program.check, {**os.environ, **NO_REPAIR})
        except OSError as error:
            os.write(2, f"cannot run {path} in {directory}: {error.strerror}\n".encode())
        return 1

    def _note_end(self, code: int) -> None:
        text = os.fsdecode(os.pread(self._output, MOST_TEXT, 0))
        if code != 0:
            self._end(_reason(text, code))
        elif not text.endswith(self._program.facts):
            self._end("queue_directory or data_directory was changed, which needs a restart")
        else:
            self._end("")

    def _look(self, _now: float) -> float:
        """Kill a trial that takes too long; return the seconds to the next look."""
        if self._pid and time.monotonic() >= self._deadline:
            self._parent.children.adopt(self._pid)  # it may be blocked by a file system
            os.kill(self._pid, signal.SIGKILL)
            self._end(f"a trial did not end within {TRIAL_TIME:g} seconds")
        return LOOK_INTERVAL

    def _end(self, reason: str) -> None:
        """Reload, or say why not, or follow a signal that came meanwhile."""
        if self._output >= 0:
            os.close(self._output)
        self._pid, self._output = 0, -1
        if reason:
            log.error(f"cannot reload: {reason}; the configuration in use is kept")
        if self._again:
            self.begin()
        elif not reason:
            self._parent.reload()


def _reason(text: str, code: int) -> str:
    """Return the last line of a trial that failed."""
    lines = text.strip().splitlines()
    if code < 0 or not lines:
        return f"a trial ended: {describe_end(code)}"
    return _TAG.sub("", lines[-1])[:LONGEST_REASON]
