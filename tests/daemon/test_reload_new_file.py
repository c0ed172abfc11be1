"""A reload after which a session file is made new, while old workers still use the one before."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.daemon_process import LONG_DRAIN, WATCHFUL
from support.master_child import NEEDS_POSTFIX, PATIENCE, PROCESSES, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import NO_SESSION, OK, Connection, expect_seed, found, lookup, update

pytestmark = NEEDS_POSTFIX

COUNT = 50
SAID = r"\bsmtp TLS session cache starts|damaged|recreated|warning"


@pytest.fixture
def child() -> Iterator[MasterChild]:
    """A daemon that serves, and looks at its files often."""
    limits = {"smtp_tls_session_cache_size_limit": "32M"}
    with MasterChild(keeps_sockets=True, tlsmgr_cf=limits, prelude=LONG_DRAIN + WATCHFUL) as daemon:
        daemon.wait_until_ready()
        yield daemon
        daemon.stop()
        assert daemon.texts("error|fatal|panic|Traceback") == []


def raise_limit(child: MasterChild) -> None:
    child.tlsmgr_cf = {"smtp_tls_session_cache_size_limit": "33M"}


def turn_encryption_off(child: MasterChild) -> None:
    child.tlsmgr_cf = {**child.tlsmgr_cf, "tlsmgr_session_encryption": "no"}


def move(child: MasterChild) -> None:
    child.main_cf["smtp_tls_session_cache_database"] = f"btree:{child.data}/other"


def remove(child: MasterChild) -> None:
    file_of(child).unlink()


def replace(child: MasterChild) -> None:
    copy = file_of(child).with_suffix(".copy")
    copy.write_bytes(file_of(child).read_bytes())
    os.chown(copy, file_of(child).stat().st_uid, -1)
    copy.rename(file_of(child))


def file_of(child: MasterChild) -> Path:
    return child.data / "smtp_scache.sessions"


REASONS: dict[str, tuple[Callable[[MasterChild], None], str]] = {
    "limit": (raise_limit, "starts empty: its size limit was raised"),
    "encryption": (turn_encryption_off, "starts empty: tlsmgr_session_encryption was changed"),
    "moved": (move, "starts empty: its database was changed"),
    "removed": (remove, "smtp_scache.sessions .*was damaged or removed"),
    "replaced": (replace, "smtp_scache.sessions .*was damaged or removed"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_an_old_worker_goes_on_with_the_file_before(child: MasterChild, reason: str) -> None:
    """It finds and stores there; nothing of that is in the new file, and nobody is harmed."""
    act, text = REASONS[reason]
    path = str(child.socket)
    with Connection(path) as stays:
        for number in range(COUNT):
            assert stays.ask(update(b"smtp", b"old %d" % number, b"%d" % number)) == OK
        old = set(child.group())
        child.hang_up()
        assert child.wait() == 0
        act(child)
        child.start_successor()
        first = set(child.group()) - old
        with Connection(path) as new:
            for number in range(COUNT):
                assert stays.ask(lookup(b"smtp", b"old %d" % number)) == found(b"%d" % number)
                assert new.ask(lookup(b"smtp", b"old %d" % number)) == NO_SESSION
                assert stays.ask(update(b"smtp", b"late %d" % number, bytes(1000))) == OK
                assert new.ask(update(b"smtp", b"new %d" % number, b"n%d" % number)) == OK
            for number in range(COUNT):
                assert stays.ask(lookup(b"smtp", b"late %d" % number)) == found(bytes(1000))
                assert new.ask(lookup(b"smtp", b"late %d" % number)) == NO_SESSION
                assert new.ask(lookup(b"smtp", b"new %d" % number)) == found(b"n%d" % number)
            expect_seed(stays, 32)
    wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
    assert set(child.group()) == first, "no worker of the new ones was replaced"
    assert ask(path, lookup(b"smtp", b"new 0")) == found(b"n0")
    (line,) = child.texts(SAID)
    assert re.search(text, line)


def test_the_file_is_removed_after_the_reload(child: MasterChild) -> None:
    """The successor makes it new; the worker that drains says nothing, and goes on."""
    path = str(child.socket)
    with Connection(path) as stays:
        assert stays.ask(update(b"smtp", b"old", b"1")) == OK
        before = set(child.group())
        child.reload()
        assert ask(path, lookup(b"smtp", b"old")) == found(b"1")
        remove(child)
        wait_until(lambda: child.texts("was damaged or removed"), PATIENCE)
        wait_until(lambda: ask(path, lookup(b"smtp", b"old")) == NO_SESSION, PATIENCE)
        assert stays.ask(update(b"smtp", b"late", b"2")) == OK
        assert stays.ask(lookup(b"smtp", b"old")) == found(b"1")
        assert ask(path, lookup(b"smtp", b"late")) == NO_SESSION
        assert before & set(child.group()), "the one that drains"
    wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
    assert len(child.texts(SAID)) == 1
