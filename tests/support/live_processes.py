"""live_processes - live processes: a server's workers, a process group; their descriptors."""

from __future__ import annotations

import contextlib
import os

import psutil


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the live workers of that parent, in the order of their pids."""
    return named(pid, "tlsmgr-worker")


def named(pid: int, name: str) -> list[psutil.Process]:
    """Return the live children of that parent that have the name, in the order of their pids."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children()
    return sorted((c for c in children if _is(c, name)), key=lambda child: int(child.pid))


def live_group_of(process: psutil.Process) -> int | None:
    """Return the process group, None if the process is dead."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(process.pid) if is_alive(process) else None
    return None


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _is(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() == name and is_alive(process)
    return False


def descriptors_of(pid: int) -> dict[int, str]:
    """Return the descriptors of a process and their targets; none if it has exited."""
    found = {}
    with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def sockets_of(pid: int) -> int:
    """Return the number of sockets that the process has open."""
    return sum(target.startswith("socket:") for target in descriptors_of(pid).values())
