"""Which processes are alive: a server's workers, a process group."""

from __future__ import annotations

import contextlib
import os

import psutil


def workers_of(pid: int) -> list[psutil.Process]:
    """The live workers of that parent, in the order of their pids."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children()
    return sorted((c for c in children if _is_worker(c)), key=lambda child: int(child.pid))


def live_group_of(process: psutil.Process) -> int | None:
    """The process group; None for what is dead."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(process.pid) if is_alive(process) else None
    return None


def is_alive(process: psutil.Process) -> bool:
    """It has not come to its end, buried or not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() == "tlsmgr-worker" and is_alive(process)
    return False
