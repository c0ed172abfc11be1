"""Twenty reloads in a row under load: nothing is lost, and nothing piles up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from support.live_processes import descriptors_of
from support.postfix_instance import PostfixInstance
from support.postfix_sandbox import wait_until
from support.raw_client import NO_SESSION, OK, Connection, found, lookup, update
from support.serving_postfix import PATIENCE, ours, parent_of, serving_postfix
from support.steady_clients import SteadyClients
from support.ticket_clients import TicketClients

pytestmark = pytest.mark.long

RELOADS, CLIENTS, TICKETS, SESSIONS = 20, 32, 80, 100
GROWTH = 1.2  # factor


class Size(NamedTuple):
    """Of all processes of ours, and of the largest: bytes that no other process has, and fds."""

    processes: int
    memory: int
    largest: int
    descriptors: int


@pytest.fixture(params=[True, False], ids=["jail", "no jail"])
def postfix(request: pytest.FixtureRequest) -> Iterator[PostfixInstance]:
    """A system that serves."""
    with serving_postfix(chroot=request.param) as system:
        yield system


def size_of(postfix: PostfixInstance) -> Size:
    """When no worker drains any more."""
    parent = parent_of(postfix)
    wait_until(lambda: len(ours(postfix)) == 1 + len(parent.children()), PATIENCE)
    family = [parent, *parent.children()]
    memory = [int(process.memory_full_info().uss) for process in family]
    descriptors = sum(len(descriptors_of(process.pid)) for process in family)
    return Size(len(family), sum(memory), max(memory), descriptors)


def test_twenty_reloads(postfix: PostfixInstance) -> None:
    path = str(postfix.socket)
    postfix.deliver()
    mail_clients = TicketClients(postfix.sink_port)
    mail_clients.collect(TICKETS)
    with Connection(path) as connection:
        for number in range(SESSIONS):
            assert connection.ask(update(b"smtp", b"%d" % number, b"s%d" % number)) == OK
    before = size_of(postfix)
    with SteadyClients(path, CLIENTS) as clients:
        for _ in range(RELOADS):
            pid, served = parent_of(postfix).pid, clients.served
            wait_until(lambda n=served: clients.served > n + 100, PATIENCE)  # type: ignore[misc]
            os.kill(postfix.master_pid(), signal.SIGHUP)
            postfix.wait_log(f"took over from process {pid}: session ticket key ")
        parent = parent_of(postfix)
        wait_until(lambda: len(ours(postfix)) == 1 + len(parent.children()), PATIENCE)
    assert clients.failures == []
    assert clients.lost == 0
    assert clients.longest < 1.0
    assert mail_clients.accepted() >= 0.95
    with Connection(path) as connection:
        replies = [connection.ask(lookup(b"smtp", b"%d" % n)) for n in range(SESSIONS)]
    assert replies == [found(b"s%d" % n) for n in range(SESSIONS)]
    assert NO_SESSION not in replies
    postfix.deliver()
    assert postfix.log_lines(r"/smtp\[.*[Rr]eusing old session")
    after = size_of(postfix)
    print(f"before {before}, after {after}; longest request {clients.longest:.3f} s")
    assert after.processes == before.processes
    assert after.descriptors < before.descriptors + RELOADS // 2, "some are clients'"
    assert after.memory < GROWTH * before.memory
    assert postfix.log_lines("warning: .*tlsmgr") == []
