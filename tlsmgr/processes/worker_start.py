"""worker_start - the entry point of a worker, called in the child after fork().

It closes what a worker must not have, attaches to what is shared, opens the caches, and runs the
loop. Until that serves, SIGTERM and DRAIN_SIGNAL end the process at once. A cache that can't be
opened is a warning. A worker that can't start exits with BOOT_ERROR; a defect of ours ends it with
a traceback in the log and status 1. It keeps no descriptor that is not in ``Inherited``.
"""

from __future__ import annotations

from tlsmgr import log
from tlsmgr.processes import setup
from tlsmgr.processes.inherited import Inherited, Pipes
from tlsmgr.processes.worker import Worker

BOOT_ERROR = 3  # exit status: it could not start
DEFECT = 1  # exit status: a traceback is in the log


def main(inherited: Inherited, slot: int, pipes: Pipes, clients: tuple[int, ...] = ()) -> int:
    """Worker entry point, called in the child after fork(); return the exit status.

    ``clients`` are connections that the parent has accepted for this worker.
    """
    try:
        worker = _boot(inherited, slot, pipes, clients)
    except OSError as error:
        log.warning(f"a worker cannot start: {error.strerror}")
        return BOOT_ERROR
    except Exception as bug:
        log.traceback(bug)
        return BOOT_ERROR
    try:
        worker.run()
    except MemoryError:
        log.error("out of memory: a worker ends, another one takes its place")
        return DEFECT
    except Exception as bug:
        log.traceback(bug)
        return DEFECT
    return 0


def _boot(inherited: Inherited, slot: int, pipes: Pipes, clients: tuple[int, ...]) -> Worker:
    setup.name_process("tlsmgr-worker")
    kept = inherited.descriptors() | inherited.directories() | inherited.farm_end(slot)
    setup.close_all_but(kept.union(pipes, clients))
    farm = setup.make_farm_link(inherited, slot)
    context = setup.make_context(inherited, slot, farm)
    for cache in context.caches:
        cache.own_directory()
    worker = Worker(inherited, slot, pipes, context, farm)
    worker.start(clients)
    return worker
