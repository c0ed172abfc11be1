"""A reload under master(8): the session caches, and the one that has to start empty."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest
from support.control_client import status_of
from support.daemon_clients import ask
from support.master_child import NEEDS_POSTFIX, MasterChild
from support.raw_client import NO_SESSION, OK, Connection, found, lookup, tktkey, update

pytestmark = NEEDS_POSTFIX

COUNT = 20


@pytest.fixture
def child() -> Iterator[MasterChild]:
    """A daemon with sessions in two caches."""
    limits = {"smtp_tls_session_cache_size_limit": "32M"}
    with MasterChild(keeps_sockets=True, tlsmgr_cf=limits) as daemon:
        store(daemon, b"1")
        yield daemon
        daemon.stop()
        assert daemon.texts("error|fatal|panic") == []


def store(child: MasterChild, name: bytes) -> None:
    """Store sessions whose ids begin with that."""
    with Connection(str(child.socket)) as connection:
        for kind in (b"smtpd", b"smtp"):
            for n in range(COUNT):
                assert connection.ask(update(kind, b"%b %d" % (name, n), b"%d" % n)) == OK


def kept(child: MasterChild, kind: bytes, name: bytes = b"1") -> bool:
    """Whether all of them are found; else none is."""
    with Connection(str(child.socket)) as connection:
        replies = [connection.ask(lookup(kind, b"%b %d" % (name, n))) for n in range(COUNT)]
    there = [reply != NO_SESSION for reply in replies]
    assert all(there) or not any(there)
    if there[0]:
        assert replies == [found(b"%d" % n) for n in range(COUNT)]
    return there[0]


def test_sessions_are_found_after_four_reloads(child: MasterChild) -> None:
    inodes = [path.stat().st_ino for path in sorted(child.data.glob("*.sessions"))]
    for number in (b"2", b"3", b"4", b"5"):
        before = child.pid
        child.reload()
        store(child, number)
        (line,) = child.texts(f"took over from process {before}: ")
        assert re.search(r": session ticket key [0-9a-f]{8}, smtpd cache, smtp cache$", line)
        count = COUNT * (int(number) - 1)
        for kind in ("smtpd", "smtp"):
            assert child.texts(f"{kind} TLS session cache: {count} sessions are kept in")
    for number in (b"1", b"2", b"3", b"4", b"5"):
        assert kept(child, b"smtpd", number)
        assert kept(child, b"smtp", number)
    assert [path.stat().st_ino for path in sorted(child.data.glob("*.sessions"))] == inodes
    assert child.texts("warning") == []


def test_counts_of_caches_go_on(child: MasterChild) -> None:
    assert kept(child, b"smtp")
    before = status_of(str(child.socket))["caches"]["smtp"]
    assert (before["hits"], before["updates"]) == (COUNT, COUNT)
    child.reload()
    assert not kept(child, b"smtp", b"none")
    after = status_of(str(child.socket))
    changed = {"lookups": 2 * COUNT, "oldest_seconds": 0, "entries": 0, "bytes": 0}
    measured = {"oldest_seconds": 0, "entries": 0, "bytes": 0}  # once a second
    assert after["caches"]["smtp"] | measured == before | changed
    assert after["counters"]["hits"] == COUNT


def remove(child: MasterChild) -> None:
    (child.data / "smtp_scache.sessions").unlink()


def replace_lock_table(child: MasterChild) -> None:
    path = child.data / "smtp_scache.sessions-lock"
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").rename(path)


def truncate(child: MasterChild) -> None:
    os.truncate(child.data / "smtp_scache.sessions", 4096)


def damage(child: MasterChild) -> None:
    with open(child.data / "smtp_scache.sessions", "r+b") as file:
        file.write(os.urandom(8192))


@pytest.mark.parametrize("harm", [remove, replace_lock_table, truncate, damage])
def test_a_file_that_is_not_sound(child: MasterChild, harm: Callable[[MasterChild], None]) -> None:
    """It is made new, and no other."""
    child.hang_up()
    assert child.wait() == 0
    harm(child)
    child.start_successor()
    assert kept(child, b"smtpd")
    assert not kept(child, b"smtp")
    child.stop()
    (line,) = child.texts("was damaged or removed")
    assert "smtp_scache.sessions" in line


CHANGES = {
    "its size limit was raised": {"smtp_tls_session_cache_size_limit": "33M"},
    "tlsmgr_session_encryption was changed": {"tlsmgr_session_encryption": "no"},
    "its database was changed": {},
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_change_that_does_not_suit_the_file(child: MasterChild, reason: str) -> None:
    child.tlsmgr_cf = {**child.tlsmgr_cf, **CHANGES[reason]}
    if not CHANGES[reason]:
        child.main_cf["smtp_tls_session_cache_database"] = f"btree:{child.data}/other"
    child.reload()
    assert kept(child, b"smtpd") is ("encryption" not in reason)
    assert not kept(child, b"smtp")
    assert f"smtp TLS session cache starts empty: {reason}" in child.texts("starts empty")
    assert child.texts("warning") == []


def test_smaller_limits_apply(child: MasterChild) -> None:
    """From the next update on. The file keeps its disk space, and may grow into it again."""
    entries = {"smtp_tls_session_cache_entry_limit": "5"}
    child.tlsmgr_cf = {"smtp_tls_session_cache_size_limit": "1M", **entries}
    child.reload()
    assert kept(child, b"smtp")
    store(child, b"2")
    with Connection(str(child.socket)) as connection:
        there = [connection.ask(lookup(b"smtp", b"2 %d" % n)) != NO_SESSION for n in range(COUNT)]
    assert there == [False] * (COUNT - 5) + [True] * 5
    child.tlsmgr_cf = {"smtp_tls_session_cache_size_limit": "32M"}
    child.reload()
    with Connection(str(child.socket)) as connection:
        assert connection.ask(lookup(b"smtp", b"2 %d" % (COUNT - 1))) == found(b"%d" % (COUNT - 1))
    assert child.texts("starts empty") == []


def test_a_shorter_timeout_applies(child: MasterChild) -> None:
    """Also to sessions that were stored under the longer one; 0 turns the cache off."""
    child.main_cf["smtp_tls_session_cache_timeout"] = "0"
    child.reload()
    assert kept(child, b"smtpd")
    child.main_cf["smtp_tls_session_cache_timeout"] = "3600"
    child.reload()
    assert not kept(child, b"smtp")


def test_a_changed_policy_flushes(child: MasterChild) -> None:
    """What smtpd(8) could resume; smtp(8) has a digest of its policy in its ids."""
    key = ask(str(child.socket), tktkey())
    (child.config / "master.cf").write_text("smtp inet n - n - - smtpd\n  -o tls_x=1\n")
    child.main_cf["smtpd_tls_ask_ccert"] = "yes"
    child.reload()
    assert not kept(child, b"smtpd")
    assert kept(child, b"smtp")
    assert ask(str(child.socket), tktkey()) != key
    (line,) = child.texts("not taken over")
    assert line == (
        "smtpd sessions and ticket keys are not taken over:"
        " smtpd_tls_ask_ccert, tls_x of smtp in master.cf changed"
    )
    assert child.texts("warning") == []


def test_who_comes_after_it_gets_nothing_from_before(
    child: MasterChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smtpd(8) with the new policy would use a ticket key that it was given for all its life."""
    monkeypatch.chdir(child.queue)  # where master(8) starts us
    key = ask(str(child.socket), tktkey())
    child.hang_up()
    assert child.wait() == 0
    child.main_cf["smtpd_tls_ask_ccert"] = "yes"
    child.start()
    with Connection(str(child.socket)) as connection:
        assert connection.ask(lookup(b"smtpd", b"1 0")) == NO_SESSION
        assert connection.ask(tktkey()) != key
        assert connection.ask(lookup(b"smtp", b"1 0")) == found(b"0")


def test_a_renewed_certificate_keeps_all(child: MasterChild) -> None:
    key = ask(str(child.socket), tktkey())
    child.main_cf["smtpd_tls_chain_files"] = "/etc/new.pem"
    child.reload()
    assert kept(child, b"smtpd")
    assert ask(str(child.socket), tktkey()) == key


def test_stop_forgets(child: MasterChild) -> None:
    child.hang_up()
    assert child.wait() == 0
    child.close_sockets()
    child.start()
    assert not kept(child, b"smtpd")
    assert not kept(child, b"smtp")
