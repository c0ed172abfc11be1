"""Caches that are `memcache:` tables: real memcached, and Postfix's own tlsmgr beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.farm_engines import NEEDS_MEMCACHED, Memcached
from support.master_child import NEEDS_POSTFIX
from support.raw_client import NO_SESSION, OK, delete, found, lookup, policy, policy_is, update
from support.stock_tlsmgr import StockTlsmgr

pytestmark = NEEDS_MEMCACHED
SESSION = b"session" * 100


@pytest.fixture
def memcached() -> Iterator[Memcached]:
    """A memcached that runs, empty."""
    with Memcached() as server:
        yield server


@pytest.fixture
def table(memcached: Memcached) -> Path:
    """The file of the table, which Postfix's own reads as mail_owner."""
    path = memcached.directory / "sessions.cf"
    path.write_text(f"memcache = unix:{memcached.socket}\nkey_format = smtp:%s\nttl = 600\n")
    return path


def daemon_with(make_daemon: MakeDaemon, table: Path) -> Daemon:
    """A daemon with this table for smtp, and patient clients."""
    daemon = make_daemon(
        f"smtp_tls_session_cache_database=memcache:{table}", "tlsmgr_farm_deadline=10s"
    )
    daemon.wait_for_log(f"memcache:{table} answers: sessions are shared$")
    return daemon


def test_update_lookup_delete(make_daemon: MakeDaemon, table: Path, memcached: Memcached) -> None:
    daemon = daemon_with(make_daemon, table)
    assert ask(daemon.socket_path, policy(b"smtp")) == policy_is(1, 3600)
    for number in range(20):
        session = SESSION + b"%d" % number
        assert ask(daemon.socket_path, update(b"smtp", b"id", session)) == OK
        assert ask(daemon.socket_path, lookup(b"smtp", b"id")) == found(session)
    value = memcached.value(b"smtp:id")
    assert value is not None
    assert value[16:] == (SESSION + b"19").hex().upper().encode()
    ask(daemon.socket_path, delete(b"smtp", b"id"))
    wait_for(lambda: memcached.value(b"smtp:id") is None, "deletion")
    assert ask(daemon.socket_path, lookup(b"smtp", b"id")) == NO_SESSION
    assert not list(daemon.directory.glob("smtp_*"))
    assert "error: " not in daemon.log()


def test_a_mistake_in_the_file_is_one_error_line(make_daemon: MakeDaemon, table: Path) -> None:
    table.write_text("memcache = inet:nowhere\nbackup = btree:/x\n")
    daemon = make_daemon(f"smtp_tls_session_cache_database=memcache:{table}")
    errors = [line for line in daemon.lines() if line.startswith("error: ")]
    assert errors == [f'error: memcache:{table} is unavailable. bad memcache server "inet:nowhere"']
    assert f"warning: {table}: backup is ignored" in daemon.log()
    assert ask(daemon.socket_path, update(b"smtp", b"id", SESSION)) == OK
    assert ask(daemon.socket_path, lookup(b"smtp", b"id")) == NO_SESSION


@NEEDS_POSTFIX
def test_hosts_with_postfixs_own_share_with_ours(
    make_daemon: MakeDaemon, table: Path, memcached: Memcached
) -> None:
    ours = daemon_with(make_daemon, table)
    stock = StockTlsmgr(parameters={"smtp_tls_session_cache_database": f"memcache:{table}"})
    with stock:
        assert ask(str(stock.socket), update(b"smtp", b"from&stock", SESSION)) == OK
        assert ask(ours.socket_path, lookup(b"smtp", b"from&stock")) == found(SESSION)
        assert ask(ours.socket_path, update(b"smtp", b"From&Ours", SESSION)) == OK
        wait_for(lambda: memcached.value(b"smtp:From&Ours"), "our session in memcached")
        assert ask(str(stock.socket), lookup(b"smtp", b"From&Ours")) == found(SESSION)


def test_items_without_an_expiration_time(
    make_daemon: MakeDaemon, table: Path, memcached: Memcached
) -> None:
    """A ttl of 0 is memcached's way to say so."""
    table.write_text(table.read_text().replace("ttl = 600", "ttl = 0"))
    daemon = daemon_with(make_daemon, table)
    assert ask(daemon.socket_path, update(b"smtp", b"id", SESSION)) == OK
    wait_for(lambda: memcached.value(b"smtp:id") is not None, "the item")
    assert ask(daemon.socket_path, lookup(b"smtp", b"id")) == found(SESSION)
