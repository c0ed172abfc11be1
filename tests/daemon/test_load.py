"""The real daemon under load: its workers agree, and no client delays another."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading

import psutil
import pytest
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.raw_client import (
    NO_SESSION,
    NOT_DONE,
    OK,
    Connection,
    data_of,
    delete,
    expect_seed,
    found,
    lookup,
    policy,
    policy_is,
    tktkey,
    update,
)

pytestmark = pytest.mark.usefixtures("many_descriptors")

# -------------------------------------------------------------------------------------- agreement


def test_four_workers_agree(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=4")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(32)]
        (key,) = {client.ask(tktkey()) for client in clients}
        name = data_of(key, b"keybuf")[:16]
        assert {client.ask(tktkey(name)) for client in clients} == {key}
        for number, writer in enumerate(clients):
            cache_id, session = b"id %d" % number, os.urandom(500)
            assert writer.ask(update(b"smtp", cache_id, session)) == OK
            assert {client.ask(lookup(b"smtp", cache_id)) for client in clients} == {found(session)}
            assert writer.ask(update(b"smtp", cache_id, b"changed")) == OK
            reader = clients[number * 7 % 32]
            assert reader.ask(lookup(b"smtp", cache_id)) == found(b"changed")
            assert reader.ask(delete(b"smtp", cache_id)) == OK
            assert {client.ask(lookup(b"smtp", cache_id)) for client in clients} == {NO_SESSION}
            assert writer.ask(delete(b"smtp", cache_id)) == NOT_DONE


def test_pipelined_requests_are_answered_in_order(daemon: Daemon) -> None:
    dice = random.Random(2)
    sessions: dict[bytes, bytes] = {}
    requests, replies = [], []
    for number in range(5000):
        cache_id = b"%d" % dice.randrange(20)
        kind = dice.randrange(4)
        if kind == 0:
            sessions[cache_id] = b"session %d" % number
            requests.append(update(b"smtp", cache_id, sessions[cache_id]))
            replies.append(OK)
        elif kind == 1:
            requests.append(delete(b"smtp", cache_id))
            replies.append(OK if sessions.pop(cache_id, None) is not None else NOT_DONE)
        elif kind == 2:
            requests.append(lookup(b"smtp", cache_id))
            replies.append(found(sessions[cache_id]) if cache_id in sessions else NO_SESSION)
        else:
            requests.append(policy(b"smtp"))
            replies.append(policy_is(1, 3600))
    with Connection(daemon.socket_path) as connection:
        sender = threading.Thread(target=connection.send, args=(b"".join(requests),))
        sender.start()
        for request, reply in zip(requests, replies):
            assert connection.read_list() == reply, request
        sender.join()


# ------------------------------------------------------------------------ nobody waits for anybody


def test_a_thousand_idle_and_a_hundred_stalled_clients_delay_nobody(
    make_daemon: MakeDaemon,
) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2")
    requests = [update(b"smtp", b"stalled %d" % number, b"session") for number in range(100)]
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(1000)]
        stalled = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(100)]
        for number, client in enumerate(stalled):
            client.send(requests[number][: number % (len(requests[number]) - 1) + 1])
        busy = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(8)]
        for _ in range(50):
            for client in busy:
                expect_seed(client, 32)
                assert client.ask(update(b"smtp", b"busy", b"session")) == OK
                assert client.ask(lookup(b"smtp", b"busy")) == found(b"session")
        for number, client in enumerate(stalled):
            client.send(requests[number][number % (len(requests[number]) - 1) + 1 :])
        assert {client.read_list() for client in stalled} == {OK}
        assert {client.ask(lookup(b"smtp", b"stalled 99")) for client in idle} == {
            found(b"session")
        }
    assert not [line for line in daemon.lines() if "warning" in line]


def test_slow_readers_of_large_replies_delay_nobody(daemon: Daemon) -> None:
    session = os.urandom(1_000_000)
    with contextlib.ExitStack() as stack:
        quick = stack.enter_context(Connection(daemon.socket_path))
        assert quick.ask(update(b"smtp", b"large", session)) == OK
        slow = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(20)]
        for client in slow:
            client.send(lookup(b"smtp", b"large") * 3)
        for _ in range(100):
            expect_seed(quick, 32)
            assert quick.ask(update(b"smtp", b"small", b"session")) == OK
        for client in slow:
            for _ in range(3):
                assert client.read_list() == found(session)


def test_stopped_worker_stops_only_its_own_clients(make_daemon: MakeDaemon) -> None:
    """Not even one that holds the writers' lock of a cache for a moment."""
    daemon = make_daemon("tlsmgr_worker_processes=3")
    victim = daemon.workers()[0]
    victim.send_signal(signal.SIGSTOP)
    try:
        for number in range(200):
            with Connection(daemon.socket_path) as connection:
                assert connection.ask(update(b"smtp", b"%d" % number, b"session")) == OK
                assert connection.ask(lookup(b"smtp", b"%d" % number)) == found(b"session")
    finally:
        victim.send_signal(signal.SIGCONT)


def wait_until_it_sleeps(worker: psutil.Process) -> None:
    wait_for(lambda: worker.status() == psutil.STATUS_SLEEPING, "the worker sleeps")


def test_connection_that_a_stopped_worker_was_told_of(make_daemon: MakeDaemon) -> None:
    """It has been woken for it and never looks: another one takes the connection.

    The one that did not accept last is first in the kernel's queue: each is the victim twice. It
    shares the CPU of this process, which it does not interrupt: it is woken before it stops.
    """
    daemon = make_daemon("tlsmgr_worker_processes=2")
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        for victim in daemon.workers():
            os.sched_setaffinity(victim.pid, {min(usable)})
            os.sched_setscheduler(victim.pid, os.SCHED_IDLE, os.sched_param(0))
        for victim in [worker for worker in daemon.workers() for _ in range(2)]:
            wait_until_it_sleeps(victim)
            victim.send_signal(signal.SIGSTOP)
            try:
                with Connection(daemon.socket_path) as connection:
                    expect_seed(connection, 32)
            finally:
                victim.send_signal(signal.SIGCONT)
    finally:
        os.sched_setaffinity(0, usable)
