"""serving_postfix - a private Postfix system with mail and our daemon; the daemon's processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil
from support.launcher import launcher
from support.live_processes import workers_of
from support.postfix_instance import PostfixInstance, need_postfix
from support.postfix_sandbox import wait_until

PATIENCE = 60.0  # seconds; limit for any wait on a loaded machine


@contextlib.contextmanager
def serving_postfix(chroot: bool, prelude: str = "") -> Iterator[PostfixInstance]:
    """Start one; at the end it must stop by itself, leave no process, and have no error logged."""
    need_postfix("btree")
    with (
        launcher(prelude) as path,
        PostfixInstance(tlsmgr=path, chroot=chroot, mail=True) as system,
    ):
        yield system
        assert system.stop() == []
        assert system.processes() == []
        assert system.log_lines("throttling|panic:|fatal:|error:|Traceback") == []


def ours(postfix: PostfixInstance) -> list[psutil.Process]:
    """Return all processes of our program, with any parent, those that just start too."""
    return [process for process in postfix.processes() if _is_ours(process)]


def parent_of(postfix: PostfixInstance, other_than: int = 0) -> psutil.Process:
    """Return our parent, once it is the only one but for this pid, and has all its workers."""
    found: list[psutil.Process] = []

    def look() -> bool:
        children = psutil.Process(postfix.master_pid()).children()
        found[:] = [p for p in children if _is_ours(p) and p.pid != other_than]
        return len(found) == 1 and len(workers_of(found[0].pid)) == len(os.sched_getaffinity(0))

    wait_until(look, PATIENCE)
    return found[0]


def _is_ours(process: psutil.Process) -> bool:
    """Return whether it runs our program, by its command line; False for what has just gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "-I" in process.cmdline()  # an option of Python
    return False
