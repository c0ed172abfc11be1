"""The daemon as a person starts it: defaults, options, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.daemon_clients import accepts, ask
from support.daemon_process import PATIENCE, Daemon, MakeDaemon, wait_for
from support.raw_client import data_of, policy, policy_is, seed
from support.settled_files import write_settled
from support.standalone_program import fatal_line, run

from tlsmgr.config.load import state_directory

# ---------------------------------------------------------------------------------------- defaults


def test_defaults(make_daemon: MakeDaemon) -> None:
    before = os.umask(0)
    try:
        daemon = make_daemon()
    finally:
        os.umask(before)
    assert daemon.socket_path == f"{daemon.state}/tlsmgr/private/tlsmgr"
    for path in (daemon.directory, daemon.directory / "private"):
        assert path.stat().st_mode & 0o7777 == 0o700
    for path in daemon.directory.iterdir():
        assert path.is_dir() or path.stat().st_mode & 0o7777 == 0o600, path
    for cache_type in (b"smtpd", b"smtp", b"lmtp"):
        assert ask(daemon.socket_path, policy(cache_type)) == policy_is(1, 3600)
        assert (daemon.directory / f"{cache_type.decode()}_scache.sessions").exists()
    assert len(daemon.workers()) == len(os.sched_getaffinity(0))
    assert Path(f"/proc/{daemon.pid}/comm").read_text() == "tlsmgr\n"
    assert not [line for line in daemon.lines() if "warning" in line or "error" in line]


@pytest.mark.parametrize(
    ("base", "expected"),
    [("/abs", "/abs/tlsmgr"), ("", "/h/.local/state/tlsmgr"), ("rel", "/h/.local/state/tlsmgr")],
)
def test_where_the_state_is(monkeypatch: pytest.MonkeyPatch, base: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert state_directory({"XDG_STATE_HOME": base}) == expected


def test_without_an_xdg_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert state_directory({}) == "/h/.local/state/tlsmgr"


def test_a_second_start_finds_the_state_of_the_first(make_daemon: MakeDaemon) -> None:
    first = make_daemon("tlsmgr_worker_processes=1")
    assert first.stop() == 0
    second = make_daemon("tlsmgr_worker_processes=1", state=str(first.state))
    assert second.socket_path == first.socket_path
    assert ask(second.socket_path, policy(b"smtp")) == policy_is(1, 3600)
    assert not [line for line in second.lines() if "warning" in line]


# ----------------------------------------------------------------------------------------- options


def test_overrides(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=1",
        "smtp_tls_session_cache_timeout=200",
        "smtp_tls_session_cache_timeout=300s",
        "lmtp_tls_session_cache_database=",
        "tlsmgr_worker_processes = 3",
    )
    assert len(daemon.workers()) == 3, "the last one wins"
    assert ask(daemon.socket_path, policy(b"smtp")) == policy_is(1, 300)
    assert ask(daemon.socket_path, policy(b"lmtp")) == policy_is(0, 3600)


@pytest.mark.parametrize("override", ["no_equals_sign", "=value", ""])
def test_an_override_that_is_none(idle: Daemon, override: str) -> None:
    assert override in fatal_line(run(idle, "-o", override))


@pytest.mark.parametrize("override", ["smtp_tls_session_cache_timeout=8640001", "ipc_timeout=0"])
def test_a_bad_value_of_a_parameter_of_postfix_stops_the_start(idle: Daemon, override: str) -> None:
    assert override.partition("=")[0] in fatal_line(run(idle, "-o", override))
    assert not (idle.directory / "private" / "tlsmgr").exists()


def test_a_bad_value_of_a_parameter_of_ours_is_an_error_and_the_default_holds(
    make_daemon: MakeDaemon,
) -> None:
    overrides = (
        "tlsmgr_worker_processes=513",
        "smtp_tls_session_cache_size_limit=1",
        "tlsmgr_session_encryption=perhaps",
    )
    daemon = make_daemon(*overrides)
    errors = [line for line in daemon.lines() if line.startswith("error: ")]
    assert len(errors) == len(overrides)
    for override in overrides:
        assert any(override.partition("=")[0] in line for line in errors), override
    assert len(daemon.workers()) == len(os.sched_getaffinity(0))


def test_a_directory_with_main_cf_and_tlsmgr_cf(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    write_settled(
        tmp_path / "main.cf",
        "smtp_tls_session_cache_database = btree:${data_directory}/smtp\n"
        "smtp_tls_session_cache_timeout = 10m\n",
    )
    write_settled(tmp_path / "tlsmgr.cf", "tlsmgr_worker_processes = 3\n")
    daemon = make_daemon(arguments=("-c", os.path.relpath(tmp_path)))
    assert len(daemon.workers()) == 3
    assert ask(daemon.socket_path, policy(b"smtp")) == policy_is(1, 600)
    assert ask(daemon.socket_path, policy(b"smtpd")) == policy_is(0, 3600)
    assert (daemon.directory / "smtp.sessions").exists()
    assert daemon.socket_path == str(daemon.directory / "private" / "tlsmgr")


def test_a_directory_with_tlsmgr_cf_alone(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    write_settled(tmp_path / "tlsmgr.cf", "tlsmgr_worker_processes = 1\n")
    daemon = make_daemon("tlsmgr_worker_processes=2", arguments=("-c", str(tmp_path)))
    assert len(daemon.workers()) == 2, "-o goes before the file"
    assert ask(daemon.socket_path, policy(b"lmtp")) == policy_is(1, 3600)


def test_an_empty_directory(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", arguments=("-c", str(tmp_path)))
    assert ask(daemon.socket_path, policy(b"lmtp")) == policy_is(1, 3600)


def test_directories_that_main_cf_names(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    write_settled(
        tmp_path / "main.cf",
        f"queue_directory = {tmp_path}/queue\ndata_directory = {tmp_path}/data\n"
        "smtpd_tls_session_cache_database = btree:${data_directory}/smtpd\n",
    )
    daemon = make_daemon(arguments=("-c", str(tmp_path)))
    assert daemon.socket_path == f"{tmp_path}/queue/private/tlsmgr"
    assert (tmp_path / "data" / "smtpd.sessions").exists()
    assert not daemon.directory.exists()


def test_no_directory(idle: Daemon, tmp_path: Path) -> None:
    assert fatal_line(run(idle, "-c", str(tmp_path / "missing"))).endswith("not a directory")
    (tmp_path / "file").write_text("")
    assert fatal_line(run(idle, "-c", str(tmp_path / "file"))).endswith("not a directory")


def test_a_slip_in_main_cf(idle: Daemon, tmp_path: Path) -> None:
    write_settled(tmp_path / "main.cf", "smtp_tls_session_cache_timeout = 10x\n")
    assert "smtp_tls_session_cache_timeout" in fatal_line(run(idle, "-c", str(tmp_path)))


def test_state_that_can_not_be_made(idle: Daemon) -> None:
    blocked = idle.state / "file"
    blocked.write_text("")
    assert f"{blocked}/tlsmgr" in fatal_line(run(idle, XDG_STATE_HOME=str(blocked)))


def test_help(idle: Daemon) -> None:
    result = run(idle, "--help")
    assert result.returncode == 0
    for option in ("-c DIR", "-o name=value", "--socket PATH", "--daemon", "--pid-file PATH"):
        assert option in result.stdout
    assert list(idle.state.glob("tlsmgr*")) == []


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["-o"], ["surplus"]])
def test_a_mistake_on_the_command_line(idle: Daemon, arguments: list[str]) -> None:
    result = run(idle, *arguments)
    assert result.returncode == 64
    assert "usage: " in result.stderr


# --------------------------------------------------------------------------------------------- end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start(make_daemon: MakeDaemon, number: signal.Signals) -> None:
    """It may come at any moment: the start ends in order, and nothing is left."""
    for step in range(6):
        daemon = make_daemon("tlsmgr_worker_processes=2", start=False)
        daemon.launch()
        path = daemon.directory / "private" / "tlsmgr"
        wait_for(lambda p=path: os.path.lexists(p), "the socket")  # type: ignore[misc]
        time.sleep(step * 0.04 + (0.02 if number == signal.SIGINT else 0.0))
        daemon.send(number)
        assert daemon.wait() == 0, (step, daemon.log())
        assert not os.path.lexists(path), step
        assert "Traceback" not in daemon.log()


def test_nobody_needs_to_read_the_path(idle: Daemon) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "tlsmgr.standalone", "-o", "tlsmgr_worker_processes=1"],
        env=idle.environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    path = str(idle.directory / "private" / "tlsmgr")
    wait_for(lambda: accepts(path), "the socket")
    assert len(data_of(ask(path, seed(5)), b"seed")) == 5
    assert process.poll() is None
    process.terminate()
    _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, words
    assert b"Traceback" not in words
