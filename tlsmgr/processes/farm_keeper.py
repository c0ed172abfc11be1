"""farm_keeper - starts the farm process, and another one when it ends; it touches no network.

Why two processes: what talks to an engine has to be outside of the jail, because a socket's path, a
host's name and a certificate are found there, and because Python imports lazily. The parent is in
the jail as soon as it serves, so no child of it can be outside. The keeper is forked before the
jail, becomes mail_owner, and stays. It holds the configuration, passwords included, and passes it
to each farm process through a pipe.

It writes into shared memory what the farm process sends: whether an engine may be asked
(``open_lanes``), and its count of dropped writes. A farm process that is silent for STALL_TIME is
not asked any more; one that is silent for HUNG_TIME is killed. Its log lines are written here.

It ends when the parent ends, and the farm process with it; SIGTERM is ignored, as the janitor does.
When the keeper itself dies, the parent forks another one. In the jail that one can start nothing:
one error line, and sessions are not shared until the next reload.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from tlsmgr import log
from tlsmgr.log import Severity
from tlsmgr.processes import setup
from tlsmgr.processes.children import HUNG_TIME, Child, Children, describe_end
from tlsmgr.processes.farm import Configuration
from tlsmgr.processes.farm_plan import FarmPlan
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.scoreboard import STALL_TIME
from tlsmgr.stats import INDEX

DEFECT = 1  # exit status: a traceback is in the log
LOOK_INTERVAL = 0.5  # seconds; the longest time between two iterations
YOUNG, PAUSE = 1.0, 5.0  # seconds; one that dies younger than that is replaced after a pause
MESSAGE_BYTES = 16384
MODULE = "tlsmgr.processes.farm"

_DROPPED = INDEX["farm_dropped"]


def main(
    inherited: Inherited,
    slot: int,
    parent_alive_fd: int,
    leave_root: Callable[[], None] | None,
) -> int:
    """Keeper entry point, called in the child after fork(); return the exit status.

    ``leave_root`` makes it mail_owner; None when it is forked in the jail.
    """
    plan = inherited.farm
    assert plan is not None
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        setup.name_process("tlsmgr-keeper")
        ends = plan.farm_ends()
        setup.close_all_but({parent_alive_fd, *log.descriptors(), *ends})
        inherited.scoreboard.beat(slot, time.monotonic())
        if leave_root is not None:
            leave_root()
        Keeper(inherited, plan, slot, leave_root is not None).run(parent_alive_fd)
    except Exception as bug:
        log.traceback(bug)
        return DEFECT
    return 0


class Keeper:
    """The loop."""

    def __init__(self, inherited: Inherited, plan: FarmPlan, slot: int, can_start: bool) -> None:
        self._plan = plan
        self._slot = slot
        self._scoreboard = inherited.scoreboard
        self._counts = inherited.stats.row(slot)
        self._children = Children(inherited.scoreboard)
        self._can_start = can_start
        self._due = 0.0
        self._heard = 0.0  # when the farm process last sent something
        self._dropped = 0  # by this farm process, as far as it is counted
        self._link: socket.socket | None = None
        self._poll = select.poll()

    def run(self, parent_alive_fd: int) -> None:
        """Keep a farm process until the parent ends."""
        self._close_lanes()
        self._poll.register(parent_alive_fd, select.POLLIN)
        if not self._can_start:
            log.error("the farm process cannot start in the jail; reload to share sessions again")
        while True:
            now = time.monotonic()
            self._scoreboard.beat(self._slot, now)
            self._look_after(now)
            for fd, _ in self._poll.poll(LOOK_INTERVAL * 1000):
                if fd == parent_alive_fd:
                    self._close_lanes()  # workers that drain need not ask
                    return
                self._receive(time.monotonic())

    def _look_after(self, now: float) -> None:
        """Reap, judge and start the farm process."""
        for child, code in self._children.reap():
            self._note_end(child, code, now)
        for child in self._children:
            silence = now - max(self._heard, child.started)
            if silence > STALL_TIME:
                self._close_lanes()
            if silence > HUNG_TIME and not child.killed:
                log.warning(f"farm process pid {child.pid} does not respond: ending it")
                self._children.kill(child, signal.SIGKILL)
        if self._can_start and not len(self._children) and now >= self._due:
            self._start(now)

    def _start(self, now: float) -> None:
        self._drop_link()
        try:
            link = self._spawn()
        except OSError as error:
            log.warning(f"cannot start the farm process: {error.strerror}; will try again")
            self._due = now + PAUSE
        else:
            self._link, self._heard, self._dropped = link, now, 0
            link.setblocking(False)
            self._poll.register(link, select.POLLIN)

    def _spawn(self) -> socket.socket:
        """Fork the farm process; return our end of the link to it. Raises OSError."""
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as afterwards:
            link, its_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            on_failure.enter_context(link)
            afterwards.enter_context(its_link)
            reader, writer = os.pipe()
            afterwards.callback(os.close, reader)
            afterwards.callback(os.close, writer)
            ends = self._plan.farm_ends()
            settings = Configuration(self._plan.engines, tuple(ends), its_link.fileno())
            os.write(writer, settings.to_bytes())  # less than a pipe holds
            kept = [*ends, its_link.fileno(), reader]
            self._children.spawn("farm process", self._slot, False, lambda: _become(kept, reader))
            on_failure.pop_all()
        return link

    def _note_end(self, child: Child, code: int, now: float) -> None:
        self._receive(now)  # its last words
        self._close_lanes()
        died_young = now - child.started < YOUNG
        self._due = now + (PAUSE if died_young else 0.0)
        if not child.killed:
            end = describe_end(code)
            log.warning(f"farm process pid {child.pid} {end}; another one takes its place")

    def _drop_link(self) -> None:
        if self._link is not None:
            self._poll.unregister(self._link)
            self._link.close()
            self._link = None

    def _receive(self, now: float) -> None:
        """Take what the farm process has sent."""
        while self._link is not None:
            try:
                data = self._link.recv(MESSAGE_BYTES)
            except (BlockingIOError, ConnectionError):
                return
            if not data:
                self._drop_link()  # its end: it will be reaped
                return
            self._heard = now
            self._take(json.loads(data))

    def _take(self, message: Any) -> None:
        if message[0] == "log":
            _, prefix, level, text = message
            log.write(Severity(prefix, level), text)
            return
        _, lanes, dropped = message
        for lane, is_open in enumerate(lanes):
            self._plan.open_lanes[lane] = is_open
        self._counts[_DROPPED] += dropped - self._dropped
        self._dropped = dropped

    def _close_lanes(self) -> None:
        for lane in range(len(self._plan.open_lanes)):
            self._plan.open_lanes[lane] = 0


def _become(kept: list[int], configuration_fd: int) -> NoReturn:
    """Become the farm process, with these descriptors."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for fd in kept:
            os.set_inheritable(fd, True)
        arguments = [sys.executable, "-I", "-m", MODULE, str(configuration_fd)]
        os.execv(sys.executable, arguments)
    except OSError as error:
        log.error(f"cannot run {sys.executable} as the farm process: {error.strerror}")
        with contextlib.suppress(BrokenPipeError):
            os._exit(DEFECT)
    raise AssertionError
