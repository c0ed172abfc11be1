"""tlsmgrctl with odd standard streams: a full disk, a reader that has gone, closed descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.daemon_process import Daemon
from support.raw_client import OK, Connection, update
from support.settled_files import empty_configuration

COMMANDS = [
    "",
    "status --json",
    "list smtp",
    "list --json smtp",
    "drop lmtp --all",
    "drop --json lmtp --all",
    "rotate",
    "rotate --json",
    "metrics",
    "metrics --text",
    "check",
    "check --json",
    "farm",
    "seed 32",
    "seed --raw 32",
    "policy smtp",
    "lookup smtp id",
    "lookup --raw smtp id",
    "tktkey",
    "report {log}",
    "report --json {log}",
    "--version",
    "--help",
    "list --help",
]
FULL = b"tlsmgrctl: No space left on device\n"
CLOSED = b"tlsmgrctl: Bad file descriptor\n"
NO_SECRET = b"tlsmgr_farm_secret_file is not set\n"  # before anything is written


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    daemon = Daemon("tlsmgr_worker_processes=1")
    try:
        daemon.start()
        with Connection(daemon.socket_path) as connection:
            assert connection.ask(update(b"smtp", b"id", b"session")) == OK
        yield daemon
    finally:
        daemon.clean_up()


@pytest.fixture
def arguments(request: pytest.FixtureRequest, running: Daemon, tmp_path: Path) -> list[str]:
    log = tmp_path / "mail.log"
    log.write_text("Nov 25 10:00:00 mx postfix/smtp[1]: a line\n")
    words: list[str] = request.param.format(log=log).split()
    if words and words[0].startswith("-"):
        return words
    return ["--socket", running.socket_path, *words]


@pytest.fixture(autouse=True)
def no_postfix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Postfix of this host is not looked at."""
    monkeypatch.setenv("MAIL_CONFIG", empty_configuration(tmp_path / "etc"))


def ctl(arguments: list[str], redirection: str = "", **options: object) -> tuple[int, bytes]:
    """Run it; return the exit status and what it says on standard error."""
    program = [sys.executable, "-m", "tlsmgr.ctl.main", *arguments]
    run = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *program],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )
    return run.returncode, run.stderr


ALL = pytest.mark.parametrize("arguments", COMMANDS, indirect=True)


@ALL
def test_a_full_disk(arguments: list[str]) -> None:
    status, text = ctl(arguments, ">/dev/full")
    assert status == 1
    assert text == FULL or text.endswith(NO_SECRET)


@ALL
def test_standard_output_closed(arguments: list[str]) -> None:
    status, text = ctl(arguments, ">&-")
    assert status == 1
    assert text == CLOSED or text.endswith(NO_SECRET)


@ALL
def test_a_reader_that_has_gone(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        status, text = ctl(arguments, stdout=writer)
    finally:
        os.close(writer)
    assert status == 1
    assert text == b"" or text.endswith(NO_SECRET)


@ALL
def test_standard_input_and_error_closed(arguments: list[str], tmp_path: Path) -> None:
    """The output and the status are as ever; no connection is taken for standard error."""
    usual, as_ever = tmp_path / "usual", tmp_path / "as_ever"
    before = ctl(arguments, f">{usual}")
    after = ctl(arguments, f">{as_ever} <&- 2>&-")
    assert after == (before[0], b"")
    assert bool(as_ever.read_bytes()) == bool(usual.read_bytes())


def test_no_descriptor_and_no_environment(running: Daemon) -> None:
    """All closed, and not even HOME: the status is what a script sees."""
    program = [sys.executable, "-m", "tlsmgr.ctl.main", "--socket", running.socket_path]
    for command, status in (["policy", "smtp"], 1), (["delete", "smtp", "none"], 1):
        run = subprocess.run(
            ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *program, *command],
            cwd=CHECKOUT,
            env={},
            timeout=60,
        )
        assert run.returncode == status
