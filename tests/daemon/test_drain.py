"""Workers that accept no more stay with their clients: at a reload, at a death, at a retirement."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.daemon_clients import ask
from support.daemon_process import (
    LONG_DRAIN,
    SHORT_DRAIN,
    SHORT_DRAIN_TIME,
    SHORT_IDLE_TIME,
    WATCHFUL,
)
from support.live_processes import descriptors_of
from support.master_child import NEEDS_POSTFIX, PATIENCE, PROCESSES, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import (
    ANNOUNCEMENT,
    OK,
    Connection,
    data_of,
    expect_seed,
    found,
    lookup,
    tktkey,
    update,
)
from support.steady_clients import SteadyClients

pytestmark = NEEDS_POSTFIX


@contextlib.contextmanager
def serving(prelude: str) -> Iterator[MasterChild]:
    with MasterChild(keeps_sockets=True, prelude=prelude + WATCHFUL) as daemon:
        daemon.wait_until_ready()
        yield daemon
        daemon.stop()
        assert daemon.texts("warning|error|fatal|panic") == [
            text for text in daemon.texts("warning") if "was damaged or removed" in text
        ]


@pytest.fixture
def child() -> Iterator[MasterChild]:
    """A daemon whose workers soon let go of their clients."""
    with serving(SHORT_DRAIN) as daemon:
        yield daemon


@pytest.fixture
def patient() -> Iterator[MasterChild]:
    """One whose workers stay with their clients."""
    with serving(LONG_DRAIN) as daemon:
        yield daemon


def kill_parent(child: MasterChild) -> None:
    """Kill it, and start a successor as master(8) does."""
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.start_successor()


ENDS = pytest.mark.parametrize("end", [MasterChild.reload, kill_parent])


@ENDS
def test_sessions_and_keys_are_those_of_the_successor(patient: MasterChild, end) -> None:  # type: ignore[no-untyped-def]
    """For the clients that stay with an old worker, too."""
    path = str(patient.socket)
    with Connection(path) as stays:
        key = data_of(stays.ask(tktkey()), b"keybuf")
        assert stays.ask(update(b"smtp", b"before", b"1")) == OK
        before = patient.pid
        end(patient)
        assert stays.ask(update(b"smtp", b"after", b"2")) == OK
        assert stays.ask(lookup(b"smtp", b"before")) == found(b"1")
        assert data_of(stays.ask(tktkey()), b"keybuf") == key
        expect_seed(stays, 32)
        with Connection(path) as new:
            for name, session in ((b"before", b"1"), (b"after", b"2")):
                assert new.ask(lookup(b"smtp", name)) == found(session)
            assert data_of(new.ask(tktkey()), b"keybuf") == key
    (line,) = patient.texts("took over")
    assert line.startswith(f"took over from process {before}: session ticket key {key[:4].hex()},")
    wait_until(lambda: len(patient.group()) == PROCESSES, PATIENCE)


@ENDS
def test_both_have_a_ticket_key(patient: MasterChild, end) -> None:  # type: ignore[no-untyped-def]
    """The same one, as none was made before; a smtpd(8) that gets none fails the handshake."""
    with Connection(str(patient.socket)) as stays:
        end(patient)
        key = data_of(stays.ask(tktkey()), b"keybuf")
        patient.wait_until_ready()
        assert data_of(ask(str(patient.socket), tktkey()), b"keybuf") == key


KILLED = """
import os
from tlsmgr.processes.ending import Ending

if os.path.exists({flag!r}):
    os.unlink({flag!r})
    Ending.let_workers_drain = lambda ending: os.kill(os.getpid(), 9)
"""


def test_the_parent_is_killed_while_it_ends(tmp_path: Path) -> None:
    """When the janitor has ended, and the workers still accept. They do the rest."""
    flag = tmp_path / "flag"
    flag.touch()
    with MasterChild(keeps_sockets=True, prelude=KILLED.format(flag=str(flag))) as child:
        child.wait_until_ready()
        with Connection(str(child.socket)) as stays:
            key = data_of(stays.ask(tktkey()), b"keybuf")
            child.hang_up()
            assert child.wait() == -signal.SIGKILL
            child.messages.clear()
            child.start()
            child.wait_until_ready()
            assert data_of(ask(str(child.socket), tktkey()), b"keybuf") == key
            expect_seed(stays, 4)
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        assert child.texts("warning|error|fatal|panic") == []


@contextlib.contextmanager
def hung_up_before_an_accept(child: MasterChild) -> Iterator[socket.socket]:
    """End the parent for a reload; yield a client that waits at the socket before its message."""
    for worker in child.workers():
        worker.suspend()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as before:
        before.connect(str(child.socket))
        before.settimeout(PATIENCE)
        child.hang_up()
        assert child.wait() == 0
        for pid in child.group():
            psutil.Process(pid).resume()
        yield before


def test_new_clients_are_served_while_the_successor_is_loaded(tmp_path: Path) -> None:
    """By the old workers, which also get those that waited before the message."""
    flag = tmp_path / "flag"
    prelude = f"""
import os, time
from tlsmgr.processes import setup

load = setup.preload
def slowly():
    while os.path.exists({str(flag)!r}):
        time.sleep(0.01)
    load()
setup.preload = slowly
"""
    with MasterChild(keeps_sockets=True, prelude=prelude) as child:
        child.wait_until_ready()
        flag.touch()
        path = str(child.socket)
        with hung_up_before_an_accept(child) as before:
            child.messages.clear()
            child.start()
            assert before.recv(100) == ANNOUNCEMENT
            with Connection(path) as new:
                expect_seed(new, 4)
            assert child.workers() == []
            flag.unlink()
            child.wait_until_ready()
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        assert child.texts("warning|error|fatal|panic") == []


HELD = """
import os, time
from tlsmgr import bootstrap

meet = bootstrap._meet
def slowly():
    met = meet()
    while os.path.exists({flag!r}):
        time.sleep(0.01)
    return met
bootstrap._meet = slowly
os._exit(bootstrap.main())
"""


def test_new_clients_are_served_after_an_edit_of_main_cf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the old workers, as soon as the successor has found that the TLS policy is the same."""
    flag = tmp_path / "flag"
    with MasterChild(keeps_sockets=True, prelude=HELD.format(flag=str(flag))) as child:
        monkeypatch.chdir(child.queue)  # where master(8) starts us
        child.wait_until_ready()
        child.hang_up()
        assert child.wait() == 0
        flag.touch()
        child.main_cf["smtp_helo_name"] = "other.test"
        child.messages.clear()
        child.start()
        with Connection(str(child.socket)) as new:
            expect_seed(new, 4)
        assert child.workers() == []
        flag.unlink()
        child.wait_until_ready()
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        assert child.texts("warning|error|fatal|panic") == []


def test_a_client_of_a_late_successor_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waited before the message, while old workers that gave up have other clients."""
    with MasterChild(keeps_sockets=True) as child:
        monkeypatch.chdir(child.queue)  # where master(8) starts us
        child.wait_until_ready()
        with Connection(str(child.socket)) as stays, hung_up_before_an_accept(child) as before:
            old = child.group()
            listener = f"socket:[{child.listener_inode}]"
            wait_until(
                lambda: all(listener not in descriptors_of(p).values() for p in old), PATIENCE
            )
            expect_seed(stays, 4)
            child.start_successor()
            assert before.recv(100) == ANNOUNCEMENT
            expect_seed(stays, 4)
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        assert child.texts("warning|error|fatal|panic") == []


def test_stop_ends_workers_that_drain(child: MasterChild) -> None:
    """`postfix stop`, right after a reload."""
    with Connection(str(child.socket)) as stays:
        expect_seed(stays, 4)
        child.reload()
        assert len(child.group()) >= 2
        for group in child._groups:
            os.killpg(group, signal.SIGTERM)
        assert stays.read_to_end() == b""
        child.expect_all_gone()


def test_silent_clients_do_not_keep_it_for_long(child: MasterChild) -> None:
    """As those that ask for nothing let go of a connection by themselves."""
    with Connection(str(child.socket)) as silent, Connection(str(child.socket)) as half:
        expect_seed(silent, 4)
        half.send(b"request\0se")
        began = time.monotonic()
        child.reload()
        assert silent.read_to_end() == b""
        assert time.monotonic() - began >= SHORT_IDLE_TIME
        assert half.read_to_end() == b""
        assert time.monotonic() - began >= SHORT_DRAIN_TIME - 0.5
    wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)


def test_a_stopped_worker_does_not_delay_it(child: MasterChild) -> None:
    """Nor does it take what waits for the successor when it resumes."""
    key = data_of(ask(str(child.socket), tktkey()), b"keybuf")
    stopped = child.workers()[0]
    stopped.suspend()
    began = time.monotonic()
    child.hang_up()
    assert child.wait() == 0
    assert time.monotonic() - began < 1.0
    stopped.resume()
    psutil.wait_procs([stopped], PATIENCE)
    child.messages.clear()
    child.start()
    assert data_of(ask(str(child.socket), tktkey()), b"keybuf") == key


def test_busy_clients_lose_no_second(child: MasterChild) -> None:
    """32 of them, with the habits of Postfix's, while all workers are replaced three times."""
    path = str(child.socket)
    with SteadyClients(path, 32) as clients:
        wait_until(lambda: clients.served > 200, PATIENCE)
        first = set(child.group())
        (child.data / "smtp_scache.sessions").unlink()
        wait_until(lambda: child.texts("was damaged or removed"), PATIENCE)
        for end in (MasterChild.reload, kill_parent):
            served = clients.served
            wait_until(lambda n=served: clients.served > n + 200, PATIENCE)  # type: ignore[misc]
            end(child)
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        served = clients.served
        wait_until(lambda: clients.served > served + 200, PATIENCE)
        assert not first & set(child.group())
    assert clients.failures == []
    assert clients.lost == 0
    assert clients.longest < 1.0
