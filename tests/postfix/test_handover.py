"""A reload and a death of our parent under master(8): tickets, sessions and clients stay."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest
from support.daemon_process import SHORT_DRAIN
from support.live_processes import is_alive, workers_of
from support.postfix_instance import PostfixInstance
from support.postfix_sandbox import wait_until
from support.serving_postfix import PATIENCE, parent_of, serving_postfix
from support.steady_clients import SteadyClients
from support.ticket_clients import TicketClients

COUNT = 80


@pytest.fixture(
    params=[
        pytest.param(True, id="jail"),
        pytest.param(False, id="no jail", marks=pytest.mark.long),
    ]
)
def postfix(request: pytest.FixtureRequest) -> Iterator[PostfixInstance]:
    """A system that serves."""
    with serving_postfix(chroot=request.param) as system:
        yield system


def reload(postfix: PostfixInstance) -> None:
    """Reload, and wait until the successor has taken over, without any client."""
    before = parent_of(postfix).pid
    postfix.postfix("reload")
    postfix.wait_log(f"took over from process {before}: session ticket key ")


def test_tickets_and_sessions_stay(postfix: PostfixInstance) -> None:
    """After one reload, after four, and after kill -9 of the parent."""
    postfix.deliver()
    clients = TicketClients(postfix.sink_port)
    clients.collect(COUNT)
    for reloads in range(1, 5):
        reload(postfix)
        if reloads in (1, 4):
            assert clients.accepted() >= 0.95
    before = parent_of(postfix).pid
    os.kill(before, 9)
    postfix.wait_log(f"took over from process {before}: session ticket key ")
    assert clients.accepted() >= 0.95
    assert postfix.log_lines(r"/smtp\[.*[Rr]eusing old session") == []
    postfix.deliver()
    assert len(postfix.log_lines(r"/smtp\[.*[Rr]eusing old session")) == 1


@pytest.mark.parametrize(
    ("chroot", "prelude"),
    [
        pytest.param(True, SHORT_DRAIN, id="jail"),
        pytest.param(False, "", id="no jail, and all the time", marks=pytest.mark.long),
    ],
)
def test_busy_clients_lose_no_second(chroot: bool, prelude: str) -> None:
    """In three reloads, until the last of the workers before has gone."""
    with (
        serving_postfix(chroot, prelude) as postfix,
        SteadyClients(str(postfix.socket), 32) as clients,
    ):
        old: list[psutil.Process] = []
        for _ in range(3):
            served = clients.served
            wait_until(lambda n=served: clients.served > n + 200, PATIENCE)  # type: ignore[misc]
            before = parent_of(postfix).pid
            old += workers_of(before)
            postfix.postfix("reload")
            assert parent_of(postfix, before)
        wait_until(lambda: not any(map(is_alive, old)), PATIENCE)
    assert clients.failures == []
    assert clients.lost == 0
    assert clients.longest < 1.0


def test_stop_forgets(postfix: PostfixInstance) -> None:
    """Right after a reload, with workers that drain; no process is left, and keys are new."""
    clients = TicketClients(postfix.sink_port)
    clients.collect(4)
    reload(postfix)
    assert clients.accepted() == 1.0
    assert postfix.stop() == []
    assert postfix.processes() == []
    postfix.start()
    assert clients.accepted() == 0.0
    assert len(postfix.log_lines("starting with new keys: nothing was handed over")) == 2
