"""A control group with a limit of memory, as a container or a unit of systemd has it.

Either version of control groups will do, where this process may make a group.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PATIENCE = 10.0  # seconds for the end of the last process in a group
MEMORY_LIMIT, SWAP_LIMIT = "memory.max", "memory.swap.max"  # names of version 2
OLD_NAMES = {MEMORY_LIMIT: "memory.limit_in_bytes", SWAP_LIMIT: "memory.memsw.limit_in_bytes"}


class MemoryGroup:
    """A control group. ``path`` is its directory."""

    def __init__(self, path: Path, is_old: bool) -> None:
        self._path = path
        self._is_old = is_old

    def limit(self, size: int) -> None:
        """Let its processes have this number of bytes that they do not have yet; no swap space."""
        self._write(MEMORY_LIMIT, size)
        with contextlib.suppress(OSError):  # swap space is not counted here
            self._write(SWAP_LIMIT, size if self._is_old else 0)

    def add(self, pids: Iterable[int]) -> None:
        """Move processes to the group; what they use so far counts in their old one."""
        for pid in pids:
            (self._path / "cgroup.procs").write_text(str(pid))

    def _write(self, name: str, value: int) -> None:
        (self._path / (OLD_NAMES[name] if self._is_old else name)).write_text(str(value))


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """Make a group; its processes must have ended when the block ends."""
    place, is_old = _place()
    path = place / f"tlsmgr-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group: {error.strerror}")
    try:
        if not (path / (OLD_NAMES[MEMORY_LIMIT] if is_old else MEMORY_LIMIT)).exists():
            pytest.skip("control groups here have no limit of memory")
        yield MemoryGroup(path, is_old)
    finally:
        _remove(path)


def _place() -> tuple[Path, bool]:
    """Return where control groups of memory are mounted, and whether they are of version 1."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and re.search(r"(^|,)memory(,|$)", options):
            return Path(place), True
        controllers = Path(place, "cgroup.subtree_control")
        if kind == "cgroup2" and controllers.exists() and "memory" in controllers.read_text():
            return Path(place), False
    pytest.skip("no control groups of memory are mounted")


def _remove(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            path.rmdir()
            return
        except OSError:  # a process that has ended is in it for a moment
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
