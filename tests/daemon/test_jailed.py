"""One worker in the jail, as mail_owner: all works without the files of the system."""

from __future__ import annotations

import os
import pwd
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.daemon_process import WATCHFUL
from support.master_child import NEEDS_POSTFIX, PATIENCE, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import (
    NO_SESSION,
    OK,
    Connection,
    data_of,
    expect_seed,
    found,
    lookup,
    tktkey,
    update,
)

pytestmark = NEEDS_POSTFIX

ONE_WORKER = {"tlsmgr_worker_processes": "1"}  # so that it is known who answers


@pytest.fixture(scope="module")
def jailed() -> Iterator[MasterChild]:
    """One worker, in the jail, with everything due every other second."""
    child = MasterChild(
        options=("-l", "-t", "unix", "-V", "-u", "-c"),
        prelude=SHORT_LIVES + SHORT_DRAIN + WATCHFUL + FAULTS,
        tlsmgr_cf=ONE_WORKER,
        parameters={
            "smtp_tls_session_cache_timeout": "2s",
            "smtp_tls_loglevel": "2",
            "tls_random_prng_update_period": "1s",
            "tls_random_reseed_period": "1s",
            "tls_random_source": "dev:$config_directory/entropy",
        },
    )
    entropy = child.config / "entropy"
    entropy.write_bytes(os.urandom(1 << 20))  # a file, as its offset tells what was read
    entropy.chmod(0o600)
    with child:
        child.wait_until_ready(workers=1)
        yield child


SHORT_LIVES = """
from tlsmgr.config import caches

caches.SHORTEST_TIMEOUT = 1
"""
SHORT_DRAIN = """
from tlsmgr.processes import drain

drain.DRAIN_TIME = 0.5
"""
FAULTS = """
from tlsmgr.sessions.sweep import Sweep
from tlsmgr.sessions.cache import SessionCache

lookup = SessionCache.lookup

def faulty_lookup(cache, cache_id, now):
    if cache_id == b"fault":
        raise RuntimeError("raised on purpose")
    return lookup(cache, cache_id, now)

SessionCache.lookup = faulty_lookup
run = Sweep.run
Sweep.run = lambda job, now: now.fault if job._rules.cache_type == "smtpd" else run(job, now)
"""


def the_worker(child: MasterChild) -> psutil.Process:
    """The one that there is, once there is one."""
    wait_until(lambda: len(child.workers()) == 1, PATIENCE)
    return child.workers()[0]


def test_requests(jailed: MasterChild) -> None:
    with Connection(str(jailed.socket)) as connection:
        assert connection.ask(update(b"smtpd", b"id", b"session")) == OK
        assert connection.ask(lookup(b"smtpd", b"id")) == found(b"session")
        assert connection.ask(lookup(b"smtp", b"id")) == NO_SESSION
        expect_seed(connection, 255)
        assert len(data_of(connection.ask(tktkey()), b"keybuf")) == 88


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_dies_is_replaced(jailed: MasterChild, number: signal.Signals) -> None:
    """And the new one opens the caches, and has the ticket key."""
    with Connection(str(jailed.socket)) as connection:
        key = connection.ask(tktkey())
        assert connection.ask(update(b"smtpd", b"survivor", b"session")) == OK
        worker = the_worker(jailed)
        worker.send_signal(number)
        assert connection.read_to_end() == b""
    with Connection(str(jailed.socket)) as connection:
        assert connection.ask(tktkey()) == key
        if number != signal.SIGSEGV:  # after which files are made again
            assert connection.ask(lookup(b"smtpd", b"survivor")) == found(b"session")
        assert the_worker(jailed).pid != worker.pid
    jailed.wait_log(rf"worker pid {worker.pid} (killed by signal {number:d}|exit status 0)$")


def test_a_cache_file_that_is_removed_is_made_anew(jailed: MasterChild) -> None:
    path = jailed.data / "smtpd_scache.sessions"
    with Connection(str(jailed.socket)) as connection:
        assert connection.ask(update(b"smtpd", b"old", b"session")) == OK
        path.unlink()
        jailed.wait_log(r"warning: smtpd_scache\.sessions was damaged or removed: recreated empty")
        assert connection.read_to_end() == b""
    with Connection(str(jailed.socket)) as connection:
        assert connection.ask(lookup(b"smtpd", b"old")) == NO_SESSION
        assert connection.ask(update(b"smtpd", b"new", b"session")) == OK
        assert connection.ask(lookup(b"smtpd", b"new")) == found(b"session")
    assert path.stat().st_uid == pwd.getpwnam("postfix").pw_uid


def test_the_exchange_file_is_kept(jailed: MasterChild) -> None:
    """It is written again in time, and made again when it was removed."""
    before = jailed.exchange_file()
    wait_until(lambda: jailed.exchange_file() not in (b"", before), PATIENCE)
    path = jailed.data / "prng_exch"
    path.unlink()
    wait_until(lambda: path.exists() and path.stat().st_size == 1024, PATIENCE)
    assert path.stat().st_uid == pwd.getpwnam("postfix").pw_uid


def test_the_entropy_source_is_read_again(jailed: MasterChild) -> None:
    """Which nobody but root can open."""
    assert read_so_far(jailed) >= 32
    before = read_so_far(jailed)
    wait_until(lambda: read_so_far(jailed) > before, PATIENCE)
    assert jailed.log_lines("tls_random_source") == []


def read_so_far(child: MasterChild) -> int:
    """The parent's offset in the file that is the source."""
    links = Path(f"/proc/{child.pid}/fd").iterdir()
    source = str(child.config / "entropy")
    (link,) = (link for link in links if link.is_symlink() and os.path.realpath(link) == source)
    fdinfo = Path(f"/proc/{child.pid}/fdinfo/{link.name}").read_text()
    position = re.search(r"pos:\s+(\d+)", fdinfo)
    assert position
    return int(position[1])


def test_a_sweep_deletes_what_has_expired(jailed: MasterChild) -> None:
    """Without a look-up, which would do it too."""
    with Connection(str(jailed.socket)) as connection:
        assert connection.ask(update(b"smtp", b"mortal", b"session")) == OK
    jailed.wait_log("delete smtp session id=mortal$")
    assert not [line for line in jailed.log_lines("id=mortal") if "]: lookup" in line]


def test_a_defect_in_a_worker_is_a_traceback_in_the_log(jailed: MasterChild) -> None:
    """The worker ends; the next one serves. Which one that is may just change."""
    with Connection(str(jailed.socket)) as connection:
        connection.send(lookup(b"smtpd", b"fault"))
        assert connection.read_to_end() == b""
    jailed.wait_log(r"worker pid \d+ exit status 1$")
    lines = [line for line in jailed.texts("panic:") if "StaleReaders" not in line]
    assert "panic: RuntimeError: raised on purpose" in lines
    text = "panic: RuntimeError: raised on purpose"
    wait_until(lambda: text in jailed.log_file.read_text(), PATIENCE)  # it follows
    assert any(re.search(r"panic:   \S+/service\.py:\d+ in _lookup$", line) for line in lines)
    assert any(re.search(r"panic:   \S+/prelude\.py:\d+ in faulty_lookup$", line) for line in lines)
    with Connection(str(jailed.socket)) as connection:
        assert connection.ask(lookup(b"smtpd", b"nothing")) == NO_SESSION


def test_a_defect_in_a_job_is_a_traceback_in_the_log(jailed: MasterChild) -> None:
    """The parent goes on."""
    jailed.wait_log("error: maintenance job smtpd cache sweep failed")
    jailed.wait_log("panic: AttributeError: 'float' object has no attribute 'fault'")
    jailed.wait_log(r"panic:   \S+/prelude\.py:\d+ in <lambda>$")


def test_the_end_in_the_jail(jailed: MasterChild) -> None:
    """The last of the tests with this fixture."""
    before = jailed.exchange_file()
    assert jailed.stop() == 0
    jailed.expect_all_gone()
    assert jailed.exchange_file() != before
