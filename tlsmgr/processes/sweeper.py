"""sweeper - a short-lived process that walks once through a session cache.

LMDB meets damaged pages with an assertion or a fault of its memory map, which ends the process. A
worker that ends so is replaced; the parent must not end, so it never reads a cache's pages: the
janitor has it fork a sweeper for each sweep. Its end by such a signal tells of damage.

It does one slice after the other, with pauses that leave the file to the workers, and ends when it
is through, when the parent goes, or by SIGTERM. A defect is a traceback in the log and status 1.
"""

from __future__ import annotations

import select
import time

from tlsmgr import log
from tlsmgr.processes import setup
from tlsmgr.processes.inherited import Inherited
from tlsmgr.sessions.sweep import Sweep

DEFECT = 1  # exit status: a traceback is in the log


def main(inherited: Inherited, slot: int, parent_alive_fd: int, sweep: Sweep) -> int:
    """Do the whole sweep, right after the fork; returns the exit status."""
    try:
        setup.name_process("tlsmgr-sweeper")
        setup.close_all_but(inherited.descriptors() | inherited.directories() | {parent_alive_fd})
        inherited.pool.attach(slot)
        end = select.poll()
        end.register(parent_alive_fd)
        while (pause := sweep.run(time.time())) and sweep.is_under_way:
            inherited.scoreboard.beat(slot, time.monotonic(), 0)
            if end.poll(pause * 1000):
                break
    except Exception as bug:
        log.traceback(bug)
        return DEFECT
    return 0
