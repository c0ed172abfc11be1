"""The end under master(8), of stock tlsmgr(8) and of ours: the status channel, and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from support.master_child import BOTH, NEEDS_POSTFIX, PATIENCE, PROCESSES, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import Connection, policy, policy_is

from tlsmgr.processes.drain import IDLE_TIME

pytestmark = NEEDS_POSTFIX


@BOTH
def test_end_with_the_status_channel(stock: bool) -> None:
    """The process that master(8) knows goes at once; our workers stay with their clients."""
    with MasterChild(stock=stock) as child, contextlib.ExitStack() as stack:
        path = str(child.socket)
        clients = [stack.enter_context(Connection(path)) for _ in range(10)]
        for connection in clients:
            assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
        if not stock:  # which waits for the rest, and for nothing else
            clients[0].send(b"request\0po")
        before = child.exchange_file()
        began = time.monotonic()
        child.hang_up()
        assert child.wait(PATIENCE) == 0
        print(f"{'stock' if stock else 'ours'}: {time.monotonic() - began:.3f} s")
        for connection in clients[1:]:
            if stock:
                assert connection.read_to_end() == b""
            else:
                assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
            connection.close()
        clients[0].close()
        child.expect_all_gone()
        assert len(child.exchange_file()) == 1024
        assert child.exchange_file() != before
        assert time.monotonic() - began < IDLE_TIME, "they end when their clients have left"


@BOTH
def test_end_with_the_status_channel_while_starting(stock: bool) -> None:
    delays = [0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3]
    with contextlib.ExitStack() as stack:
        children: list[MasterChild] = []
        for delay in delays:
            child = stack.enter_context(MasterChild(stock=stock))
            time.sleep(delay)  # not hope: any moment of the start-up will do
            child.hang_up()
            assert child.wait(PATIENCE) == 0, child.log()
            children.append(child)
        for child in children:
            child.expect_all_gone()


@BOTH
def test_a_request_at_the_last_moment_is_answered_or_refused(stock: bool) -> None:
    """Never half an answer; by ours it is answered."""
    with MasterChild(stock=stock) as child, contextlib.ExitStack() as stack:
        path = str(child.socket)
        clients = [stack.enter_context(Connection(path)) for _ in range(50)]
        for connection in clients[:25]:
            connection.send(policy(b"smtp"))
        child.hang_up()
        for connection in clients[25:]:
            with contextlib.suppress(BrokenPipeError):
                connection.send(policy(b"smtp"))
            connection.half_close()
        assert child.wait(PATIENCE) == 0
        for connection in clients:
            if stock:
                assert connection.read_to_end() in (b"", policy_is(1, 3600))
            else:
                assert connection.read_list() == policy_is(1, 3600)


@pytest.mark.parametrize("whom", ["parent", "group"])
def test_sigterm_is_an_orderly_end(whom: str) -> None:
    """`postfix stop` sends it to the process group. Stock dies of it and saves nothing."""
    with MasterChild() as child, Connection(str(child.socket)) as connection:
        child.wait_until_ready()
        assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
        before = child.exchange_file()
        (os.kill if whom == "parent" else os.killpg)(child.pid, signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
        child.expect_all_gone()
        assert child.exchange_file() != before
        assert child.texts("warning|error|fatal|panic") == []


@pytest.mark.parametrize("hands_over", ["yes", "no"])
def test_workers_of_a_killed_parent_drain(hands_over: str) -> None:
    """Whether or not they leave a message to a successor."""
    way = {"tlsmgr_handover": hands_over}
    with MasterChild(tlsmgr_cf=way) as child, Connection(str(child.socket)) as connection:
        child.wait_until_ready()
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        began = time.monotonic()
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(PATIENCE) == -signal.SIGKILL
        wait_until(lambda: len(child.group()) == 1, PATIENCE)
        assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
        connection.close()
        child.expect_all_gone()
        assert time.monotonic() - began < IDLE_TIME
        assert child.texts("warning|error|fatal|panic") == []


STUCK = """
import time
from tlsmgr.processes.children import Children

Children.mark_stalled = lambda self, now: time.sleep(600)
"""


def test_watchdog_ends_a_parent_that_is_stuck() -> None:
    with MasterChild(prelude=STUCK, parameters={"daemon_timeout": "2s"}) as child:
        assert child.wait(PATIENCE) in (1, -signal.SIGALRM)
        child.expect_all_gone()
