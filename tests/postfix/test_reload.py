"""Reload, kill -9 and stop while mail flows: no message is lost, none is sent in clear."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from support.daemon_clients import ask
from support.daemon_process import REPLACED_SOON, SHORT_DRAIN, shared_memory_names, wait_for
from support.launcher import launcher
from support.live_processes import workers_of
from support.mail_traffic import MAY, PATIENCE, SOON, Traffic, deliveries_in_clear
from support.postfix_instance import PostfixInstance, need_postfix
from support.postfix_sandbox import wait_until
from support.raw_client import Connection, policy
from support.serving_postfix import ours, parent_of

SYSTEMS = [
    pytest.param(("btree", True), id="jail"),
    pytest.param(("lmdb", False), id="no jail", marks=pytest.mark.long),
]


@pytest.fixture(scope="module", params=SYSTEMS)
def postfix(request: pytest.FixtureRequest) -> Iterator[PostfixInstance]:
    """A system that would send in clear if TLS failed it, and that tries again soon."""
    cache_type, chroot = request.param
    need_postfix(cache_type)
    quiet = {"smtp_tls_loglevel": "1", "smtpd_tls_loglevel": "1"}
    with (
        launcher(REPLACED_SOON + SHORT_DRAIN) as path,
        PostfixInstance(
            tlsmgr=path,
            cache_type=cache_type,
            chroot=chroot,
            mail=True,
            parameters={**MAY, **SOON, **quiet},
        ) as system,
    ):
        yield system
        assert system.stop() == []


def wait_until_gone(*processes: psutil.Process) -> None:
    """Wait until they are dead, and buried by their parents."""
    wait_until(lambda: not any(process.is_running() for process in processes), PATIENCE)


def exchange_file(postfix: PostfixInstance) -> bytes:
    """Its content."""
    return (postfix.data / "prng_exch").read_bytes()


def test_deliveries_in_clear_would_be_seen() -> None:
    established = "mail postfix/smtp[{}]: Untrusted TLS connection established to [127.0.0.1]"
    sent = "mail postfix/smtp[{}]: 4BF: to=<a@b.test>, relay=[127.0.0.1], status=sent (250 Ok)"
    other = "mail postfix/discard[1]: 5BF: to=<a@b.test>, status=sent (sink)"
    lines = [established.format(1), sent.format(1), sent.format(2), sent.format(1), other]
    assert deliveries_in_clear("\n".join(lines)) == [sent.format(2), sent.format(1)]


def test_reload(postfix: PostfixInstance) -> None:
    """The parent goes, the next one serves, and the exchange file is saved between."""
    with Traffic(postfix) as traffic:
        for _ in range(2):
            traffic.wait_for_more()
            parent = parent_of(postfix)
            before = exchange_file(postfix)
            postfix.postfix("reload")
            wait_until_gone(parent)
            assert exchange_file(postfix) != before
            traffic.wait_for_more()
            assert parent_of(postfix).pid != parent.pid
    traffic.expect_all_delivered_over_tls()
    assert postfix.log_lines("warning: process .*tlsmgr") == []


def test_reload_takes_up_a_changed_main_cf(postfix: PostfixInstance) -> None:
    with Connection(str(postfix.socket)) as connection:
        assert b"timeout\x003600\0" in connection.ask(policy(b"smtp"))
        postfix.main_cf["smtp_tls_session_cache_timeout"] = "2h"
        postfix.write_main_cf()
        postfix.postfix("reload")
        wait_for(
            lambda: b"timeout\x007200\0" in ask(str(postfix.socket), policy(b"smtp")),
            "the new timeout",
        )
        assert b"timeout\x003600\0" in connection.ask(policy(b"smtp")), "an old worker's"


def test_workers_killed(postfix: PostfixInstance) -> None:
    with Traffic(postfix) as traffic:
        parent = parent_of(postfix)
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT):
            traffic.wait_for_more()
            worker = workers_of(parent_of(postfix).pid)[0]
            worker.send_signal(number)
            wait_until_gone(worker)
        traffic.wait_for_more()
        assert parent_of(postfix).pid == parent.pid
    traffic.expect_all_delivered_over_tls()


def test_all_workers_killed(postfix: PostfixInstance) -> None:
    with Traffic(postfix) as traffic:
        traffic.wait_for_more()
        for worker in workers_of(parent_of(postfix).pid):
            worker.kill()
            wait_until_gone(worker)
        traffic.wait_for_more()
    traffic.expect_all_delivered_over_tls()


def test_parent_killed(postfix: PostfixInstance) -> None:
    """master(8) starts another one at once."""
    with Traffic(postfix) as traffic:
        for _ in range(2):
            traffic.wait_for_more()
            parent = parent_of(postfix)
            parent.kill()
            postfix.wait_log(rf"/master\[\d+\]: warning: process .* pid {parent.pid} killed by")
            wait_until_gone(parent)
            traffic.wait_for_more()
            assert parent_of(postfix).pid != parent.pid
    traffic.expect_all_delivered_over_tls()


def test_master_killed(postfix: PostfixInstance) -> None:
    """As by `postfix drain`: we end, and save."""
    parent_of(postfix)
    before = exchange_file(postfix)
    os.kill(postfix.master_pid(), signal.SIGKILL)
    wait_until(lambda: not ours(postfix), PATIENCE)
    assert exchange_file(postfix) != before
    postfix.stop()
    postfix.start()
    postfix.deliver()


def test_stop(postfix: PostfixInstance) -> None:
    """With a client that says nothing, and one in mid-request. Then it starts again."""
    names = shared_memory_names()
    postfix.deliver()
    parent_of(postfix)
    before = exchange_file(postfix)
    with Connection(str(postfix.socket)) as silent, Connection(str(postfix.socket)) as slow:
        slow.send(b"request\0poli")
        postfix.postfix("stop")
        assert postfix.stop() == []
        assert silent.read_to_end() == slow.read_to_end() == b""
    assert postfix.processes() == []
    wait_until(lambda: not shared_memory_names() - names, PATIENCE)
    assert exchange_file(postfix) != before
    postfix.postfix("start")
    postfix.note_group()
    postfix.deliver(2)
    assert postfix.log_lines("throttling|panic:|fatal:|Traceback") == []
