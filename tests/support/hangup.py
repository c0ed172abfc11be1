"""hangup - SIGHUP to a daemon that was started by hand: wait for what it does."""

from __future__ import annotations

import os
import signal

from support.checkout import CHECKOUT
from support.daemon_process import Daemon, wait_for
from support.live_processes import workers_of

ANYWHERE = f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}]"
"""Sabotage that does no harm: the program may be started in any directory."""


def starts_of(daemon: Daemon) -> int:
    """Return how often the program has started."""
    return sum(" starts: " in line for line in daemon.lines())


def reload(daemon: Daemon, workers: int = 1) -> None:
    """Send SIGHUP; return when that many new workers were started."""
    pid = daemon.pid
    starts, before = starts_of(daemon), daemon.worker_pids()
    daemon.send(signal.SIGHUP)
    wait_for(lambda: starts_of(daemon) > starts, "another start")
    wait_for_workers(pid, before, workers)


def wait_for_workers(pid: int, before: set[int], count: int) -> None:
    """Wait until that many workers run beside those before."""
    wait_for(lambda: len({w.pid for w in workers_of(pid)} - before) >= count, "new workers")


def wait_for_drain(daemon: Daemon, before: set[int]) -> None:
    """Wait until the workers before have ended, and were reaped."""
    wait_for(lambda: not [p for p in before if os.path.exists(f"/proc/{p}")], "end of old workers")


def refusal(daemon: Daemon) -> str:
    """Send SIGHUP; return why there is no reload. The workers are those before."""
    before, start = daemon.worker_pids(), len(daemon.log())
    daemon.send(signal.SIGHUP)
    daemon.wait_for_log("error: cannot reload: ", start)
    (line,) = [line for line in daemon.lines(start) if line.startswith("error: ")]
    prefix, suffix = "error: cannot reload: ", "; the configuration in use is kept"
    assert line.startswith(prefix), line
    assert line.endswith(suffix), line
    assert daemon.worker_pids() == before
    return line[len(prefix) : -len(suffix)]
