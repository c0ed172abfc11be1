"""A reload while the disk is full: keys, tickets and sessions go over all the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.master_child import NEEDS_POSTFIX, PATIENCE, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import OK, Connection, data_of, expect_seed, found, lookup, tktkey, update
from support.small_disks import fill_up, mounted

pytestmark = NEEDS_POSTFIX

COUNT = 100
SOON = "from tlsmgr.processes import filewatch; filewatch.RETRY_INTERVAL = 0.3"
SESSION = bytes(range(200)) * 5


@pytest.fixture
def child() -> Iterator[MasterChild]:
    """A daemon that serves, with its data on a file system of its own."""
    limits = {f"{kind}_tls_session_cache_size_limit": "1M" for kind in ("smtp", "smtpd")}
    place = Path(tempfile.mkdtemp(prefix="disk-"))  # postfix may pass through its parents
    place.chmod(0o755)
    with mounted(place / "disk", "64m") as disk:
        disk.chmod(0o755)
        with MasterChild(
            keeps_sockets=True, tlsmgr_cf=limits, data_parent=str(disk), prelude=SOON
        ) as daemon:
            daemon.wait_until_ready()
            yield daemon
            daemon.stop()
            assert daemon.texts("error|fatal|panic|Traceback") == []
    (place / "disk").rmdir()
    place.rmdir()


def test_a_reload_on_a_full_disk(child: MasterChild) -> None:
    path = str(child.socket)
    with Connection(path) as connection:
        key = data_of(connection.ask(tktkey()), b"keybuf")
        for number in range(COUNT):
            assert connection.ask(update(b"smtp", b"%d" % number, SESSION)) == OK
    before, filler = child.pid, fill_up(child.data)
    for _ in range(2):
        child.reload()
        with Connection(path) as connection:
            expect_seed(connection, 32)
            assert data_of(connection.ask(tktkey()), b"keybuf") == key
            for number in range(COUNT):
                assert connection.ask(lookup(b"smtp", b"%d" % number)) == found(SESSION)
            assert connection.ask(update(b"smtp", b"new", SESSION)) == OK
            assert connection.ask(lookup(b"smtp", b"new")) == found(SESSION)
    assert child.texts(f"took over from process {before}: session ticket key ")
    assert child.texts("warning|starts empty|recreated") == []
    filler.unlink()


def test_a_file_that_does_not_fit_any_more(child: MasterChild) -> None:
    """As its limit was raised. That cache waits for room; one line says so."""
    path = str(child.socket)
    with Connection(path) as connection:
        key = data_of(connection.ask(tktkey()), b"keybuf")
        assert connection.ask(update(b"smtpd", b"other", SESSION)) == OK
        assert connection.ask(update(b"smtp", b"id", SESSION)) == OK
    filler = fill_up(child.data)
    child.tlsmgr_cf = {**child.tlsmgr_cf, "smtp_tls_session_cache_size_limit": "100M"}
    child.reload()
    with Connection(path) as connection:
        expect_seed(connection, 32)
        assert data_of(connection.ask(tktkey()), b"keybuf") == key
        assert connection.ask(lookup(b"smtpd", b"other")) == found(SESSION)
    wait_until(lambda: child.texts("cannot make"), PATIENCE)
    filler.unlink()

    def is_kept() -> bool:
        ask(path, update(b"smtp", b"id", SESSION))
        return ask(path, lookup(b"smtp", b"id")) == found(SESSION)

    wait_until(is_kept, PATIENCE)
    first, second = child.texts("warning")
    assert "cannot make smtp_scache.sessions: No space left on device; will try again" in first
    assert "wanted 141 MiB of disk space, got" in second
