"""The real daemon with a secret of a farm: its keys, in the jail too, and every refusal."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.daemon_process import MakeDaemon
from support.farm_secret import DAY, EXAMPLE_KEY, file_text, write
from support.master_child import NEEDS_POSTFIX, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import Connection, data_of, expect_seed, tktkey

from tlsmgr.farm.secret import parse, secret_of, ticket_key

T, S = 3600, 1800
NO_KEY = b"status\x004294967295\0keybuf\0\0\0"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A secret file that holds since long ago."""
    return write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))


def key_at(now: int) -> bytes:
    """The key of the example's secret for new tickets."""
    secret = secret_of(parse(file_text({"2026-11-01": EXAMPLE_KEY}).encode(), 10**6), now // DAY)
    assert secret is not None
    return ticket_key(secret, now // S, T)


def ask_key(socket_path: str | Path, name: bytes = b"") -> bytes:
    """The key that the daemon has."""
    return data_of(ask(str(socket_path), tktkey(name)), b"keybuf")


def expect_key_of_now(socket_path: str | Path) -> None:
    """The daemon's key for new tickets is that of the time of asking."""
    before = int(time.time())
    key = ask_key(socket_path)
    assert key in {key_at(before), key_at(int(time.time()))}


def known_slots(socket_path: str) -> tuple[list[bool], int]:
    """Whether the keys of three slots before, this one, and three after are known; and the time.

    Asks again if another slot begins meanwhile.
    """
    while True:
        now = int(time.time())
        keys = [key_at(now + i * S) for i in range(-3, 4)]
        replies = [ask(socket_path, tktkey(key[:16])) for key in keys]
        for key, reply in zip(keys, replies):
            assert reply == NO_KEY or data_of(reply, b"keybuf") == key
        if int(time.time()) // S == now // S:
            return [reply != NO_KEY for reply in replies], now


def test_all_workers_have_the_keys_of_the_farm(make_daemon: MakeDaemon, path: Path) -> None:
    daemon = make_daemon(f"tlsmgr_farm_secret_file={path}", "tlsmgr_worker_processes=2")
    for _ in range(20):
        expect_key_of_now(daemon.socket_path)
    found, now = known_slots(daemon.socket_path)
    assert found == [False, False, True, True, True, False, False]
    assert ask(daemon.socket_path, tktkey(b"n" * 16)) == NO_KEY
    (line,) = [line for line in daemon.lines() if "session ticket keys" in line]
    assert line in {
        f"session ticket keys are derived from {path};"
        f" the key for new tickets is {key_at(t)[:4].hex()}"
        for t in (now - S, now)
    }
    daemon.stop()
    assert re.search(r" unknown_keys=(5|9)$", daemon.log(), re.MULTILINE)
    assert "error: " not in daemon.log()


def test_two_daemons_and_a_restart(make_daemon: MakeDaemon, path: Path) -> None:
    option = f"tlsmgr_farm_secret_file={path}"
    one, other = make_daemon(option), make_daemon(option)
    key = ask_key(one.socket_path)
    assert ask_key(other.socket_path, key[:16]) == key
    one.stop()
    assert ask_key(make_daemon(option).socket_path, key[:16]) == key


MODE = "other users have access to it (mode 0640); run chmod 600"
BAD_FILES = {
    "too open": (file_text({"2026-11-01": EXAMPLE_KEY}), 0o640, MODE),
    "no secret yet": (file_text({"9999-01-01": EXAMPLE_KEY}), 0o600, "no secret holds yet: "),
    "rubbish": ("rubbish\n", 0o600, "line 1: expected a date and a secret in base64"),
}


@pytest.mark.parametrize("mistake", [*BAD_FILES, "missing"])
def test_a_bad_file_is_one_error_line_and_keys_of_its_own(
    make_daemon: MakeDaemon, path: Path, mistake: str
) -> None:
    if mistake == "missing":
        path.unlink()
        reason = "No such file or directory"
    else:
        text, mode, reason = BAD_FILES[mistake]
        write(path, text, mode)
    daemon = make_daemon(f"tlsmgr_farm_secret_file={path}")
    with Connection(daemon.socket_path) as connection:
        expect_seed(connection, 32)
    key = ask_key(daemon.socket_path)
    assert ask_key(daemon.socket_path, key[:16]) == key
    now = int(time.time())
    assert key not in {key_at(now - S), key_at(now)}
    (line,) = [line for line in daemon.lines() if line.startswith("error: ")]
    assert line.startswith(f"error: farm secret file {path}: {reason}")
    assert line.endswith("; this host uses ticket keys of its own")


def test_no_module_of_the_farm_without_a_farm(make_daemon: MakeDaemon, path: Path) -> None:
    """The launcher's daemon says at its end which modules it had."""
    tell = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted(m for m in sys.modules if 'farm' in m),"
        " 'end of modules', file=sys.stderr))\n"
    )
    off, on = (
        make_daemon(*options, sabotage=tell)
        for options in ([], [f"tlsmgr_farm_secret_file={path}"])
    )
    off.stop()
    on.stop()
    assert off.log().splitlines()[-1] == "end of modules"
    assert "tlsmgr.farm.secret " in on.log().splitlines()[-1]


@NEEDS_POSTFIX
def test_in_the_jail_with_a_file_of_root(path: Path) -> None:
    """Only root can read it; a worker that starts later has its keys all the same."""
    child = MasterChild(
        options=("-l", "-t", "unix", "-V", "-u", "-c"),
        tlsmgr_cf={
            "tlsmgr_worker_processes": "1",
            "tlsmgr_farm_secret_file": str(path),
        },
    )
    with child:
        child.wait_until_ready(workers=1)
        path.unlink()
        expect_key_of_now(child.socket)
        (worker,) = child.workers()
        worker.kill()
        wait_until(lambda: worker not in child.workers() and child.workers(), 30)
        expect_key_of_now(child.socket)
