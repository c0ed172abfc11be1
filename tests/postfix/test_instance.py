"""The fixtures that run real Postfix: they work, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import postfix_instance
from support.checkout import CHECKOUT
from support.daemon_process import Daemon
from support.postfix_instance import (
    PostfixInstance,
    StockTlsmgr,
    need_postfix,
    postconf,
    postfix_missing,
    wait_until,
)
from support.postfix_sandbox import PostfixSandbox
from support.standalone_program import fatal_line, run

from tlsmgr.client import BadRequest, Client, Policy, TimedOut

TESTS = CHECKOUT / "tests"


def expect_nothing_left(system: PostfixSandbox) -> None:
    assert not system.directory.exists()
    assert not system.data.exists()


@pytest.fixture
def launcher() -> Iterator[Path]:
    """An executable script outside Postfix's directories, to be filled in."""
    need_postfix()
    with StockTlsmgr() as sandbox:  # for its directory, which mail_owner may enter
        path = sandbox.directory / "launcher"
        path.touch()
        path.chmod(0o755)
        yield path


# PostfixInstance


@pytest.mark.parametrize(
    ("cache_type", "chroot", "data_parent"), [("btree", False, "/dev/shm"), ("lmdb", True, None)]
)
def test_mail_over_tls_reuses_sessions(
    cache_type: str, chroot: bool, data_parent: str | None
) -> None:
    need_postfix(cache_type)
    with PostfixInstance(
        mail=True, cache_type=cache_type, chroot=chroot, data_parent=data_parent
    ) as postfix:
        postfix.deliver(3)
        postfix.wait_log(r"/discard\[\d+\]: .*status=sent", 3)
        assert len(postfix.wait_log(r"/smtp\[\d+\]: .*: Reusing old session$", 2)) == 2
        ticket = r"/smtpd\[\d+\]: .*: Reusing old session \(RFC 5077 session ticket\)"
        assert len(postfix.wait_log(ticket, 2)) == 2
        assert len(postfix.log_lines(r"TLS connection established to")) == 3
        assert postfix.log_lines("warning|error|fatal|panic") == []
        assert {path.suffix for path in postfix.data.glob("smtp_scache*")} <= {".db", ".lmdb"}
        assert postfix.stop() == []
        assert postfix.processes() == []
    expect_nothing_left(postfix)


def test_smallest_system_has_no_inet_service() -> None:
    need_postfix()
    with PostfixInstance(caches=["smtp"], parameters={"smtp_tls_session_cache_timeout": "2h"}) as p:
        with Client(p.socket) as client:
            assert client.policy("smtp") == Policy(True, 7200)
            assert client.policy("smtpd") == Policy(False, 3600)
        names = {process.name(): process for process in p.processes()}
        assert {"master", "tlsmgr"} <= set(names)
        assert names["master"].pid == p.master_pid()
        assert all(process.net_connections("inet") == [] for process in names.values())
    expect_nothing_left(p)


def test_another_command_for_tlsmgr(launcher: Path) -> None:
    stock = os.path.join(postconf("-d", "-h", "daemon_directory"), "tlsmgr")
    launcher.write_text(f'#!/bin/sh\nexec {stock} "$@"\n')
    with PostfixInstance(tlsmgr=f"{launcher} -v") as postfix, Client(postfix.socket) as client:
        assert len(client.seed(32)) == 32
        (process,) = [p for p in postfix.processes() if p.name() == "tlsmgr"]
        assert process.cmdline()[1:] == ["-l", "-n", "tlsmgr", "-t", "unix", "-u", "-v"]


def test_reload_and_services() -> None:
    need_postfix()
    with PostfixInstance(services="never unix - - n - 0 discard\n") as postfix:
        with Client(postfix.socket) as client:
            key = client.ticket_key()
            postfix.postfix("reload")
            postfix.wait_log("reload")
            wait_until(lambda: client.ticket_key() != key, 10)
        assert (postfix.queue / "private" / "never").is_socket()


def test_what_outlives_stop_is_killed_and_named(
    launcher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postfix_instance, "STOP_LIMIT", 0.5)
    launcher.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
    with PostfixInstance(tlsmgr=str(launcher)) as postfix:
        with pytest.raises(TimedOut):  # and the connection starts the launcher
            Client(postfix.socket, timeout=0.5).connect()
        os.kill(postfix.master_pid(), signal.SIGKILL)
        assert "launcher" in postfix.stop()
        assert postfix.processes() == []


def test_a_failed_start_tells_why_and_leaves_nothing() -> None:
    need_postfix()
    postfix = PostfixInstance(services="this is no master.cf line\n")
    with pytest.raises(RuntimeError, match=r"postfix start failed(.|\n)*fatal"), postfix:
        pass
    expect_nothing_left(postfix)


def test_wait_log_gives_up() -> None:
    need_postfix()
    with PostfixInstance() as postfix:
        assert len(postfix.wait_log("daemon started")) == 1
        with pytest.raises(TimeoutError, match="1 of 2 lines 'daemon started'"):
            postfix.wait_log("daemon started", 2, timeout=0.1)


# StockTlsmgr


@pytest.mark.parametrize("arguments", [[], ["-c"]], ids=["", "chroot"])
def test_stock_alone(arguments: list[str]) -> None:
    need_postfix()
    with StockTlsmgr(arguments=arguments) as stock, StockTlsmgr() as other:
        assert stock.socket != other.socket
        with Client(stock.socket) as client, Client(other.socket) as second:
            client.update("smtp", b"id", b"session")
            assert second.lookup("smtp", b"id") is None
            for _ in range(1000):  # and the status channel does not fill up
                assert client.lookup("smtp", b"id") == b"session"
            with pytest.raises(BadRequest):
                client.seed(0)
        assert stock.process is not None
        root = os.readlink(f"/proc/{stock.process.pid}/root")
        assert root == (str(stock.queue) if arguments else "/")
        stock.wait_log('warning: bogus seed length "0"')
        assert stock.stop() == 0
        assert (stock.data / "prng_exch").exists()  # it left by its exit handler
    expect_nothing_left(stock)


def test_stock_ends_with_its_parent() -> None:
    need_postfix()
    script = """
        import signal, sys
        from support.postfix_instance import StockTlsmgr
        stock = StockTlsmgr()
        stock.start()
        print(stock.process.pid, stock.directory, flush=True)
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, env=environment, stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        pid, directory = parent.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(int(pid)), 10)
    subprocess.run(["rm", "-r", directory], check=True)


# Reasons to skip


def test_postfix_missing_tells_what(monkeypatch: pytest.MonkeyPatch) -> None:
    need_postfix()
    assert postfix_missing("nosuchtype", "btree") == "Postfix lacks the table type nosuchtype"
    monkeypatch.setattr("support.postfix_sandbox.ENVIRONMENT", {"PATH": "/nonexistent"})
    assert postfix_missing() == "Postfix is not installed"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert postfix_missing() == "a private Postfix needs root"


# Another daemon beside it


def test_a_daemon_that_a_person_starts_leaves_its_data_directory_alone(idle: Daemon) -> None:
    need_postfix()
    with PostfixInstance() as postfix:
        names = sorted(os.listdir(postfix.data))
        line = fatal_line(run(idle, "-o", f"data_directory={postfix.data}"))
        assert line == (
            f"a running Postfix uses {postfix.data}; -o data_directory=DIR gives this one its own"
        )
        assert sorted(os.listdir(postfix.data)) == names
