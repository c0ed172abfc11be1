"""A successor that comes when the old workers do not wait for it any more."""

from __future__ import annotations

import socket

import psutil
import pytest
from support.live_processes import descriptors_of
from support.master_child import NEEDS_POSTFIX, PATIENCE, PROCESSES, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import ANNOUNCEMENT, Connection, expect_seed, policy

pytestmark = NEEDS_POSTFIX

IMPATIENT = "from tlsmgr.processes import bridge; bridge.CALL_TIME = 0.05"


def retire_workers(child: MasterChild) -> list[psutil.Process]:
    """Have others take the places of the workers, which stay for their clients; return these."""
    old = child.workers()
    (child.data / "smtp_scache.sessions").unlink()
    wait_until(lambda: child.texts("recreated empty"), PATIENCE)
    wait_until(lambda: len(child.workers()) == len(old) + 1, PATIENCE)
    return old


@pytest.mark.parametrize("retired", [False, True])
def test_a_client_that_waits_for_it_is_served(retired: bool) -> None:
    """And is not passed on to a worker that accepts no more, but still has clients."""
    with MasterChild(keeps_sockets=True, prelude=IMPATIENT) as child:
        child.wait_until_ready()
        with Connection(str(child.socket)) as stays, socket.socket(socket.AF_UNIX) as waits:
            if retired:
                retire_workers(child)
            workers = child.workers()
            for worker in workers:
                worker.suspend()
            waits.settimeout(PATIENCE)
            waits.connect(str(child.socket))  # before the message is there
            child.hang_up()
            assert child.wait() == 0
            for worker in workers:
                worker.resume()
            listener = f"socket:[{child.listener_inode}]"
            wait_until(
                lambda: (
                    not any(
                        listener in descriptors_of(worker.pid).values()
                        for worker in workers
                        if worker.is_running()
                    )
                ),
                PATIENCE,
            )
            child.start_successor()
            assert waits.recv(100) == ANNOUNCEMENT
            waits.send(policy(b"smtp"))
            assert waits.recv(100).startswith(b"status\x000\0")
            expect_seed(stays, 32)
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        child.stop()
