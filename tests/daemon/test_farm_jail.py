"""The farm process of a daemon that is in the jail, as master(8) starts it on Debian."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.daemon_clients import ask
from support.daemon_process import wait_for
from support.farm_engines import NEEDS_REDIS, Redis
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.master_child import NEEDS_POSTFIX, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import NO_SESSION, OK, found, lookup, update

pytestmark = [NEEDS_POSTFIX, NEEDS_REDIS]
SESSION = b"session" * 100
REPLACED_SOON = """
from tlsmgr.processes import auxiliaries, farm_keeper
auxiliaries.LONGEST_PAUSE = farm_keeper.PAUSE = 0.2
"""
SHARED = "answers: sessions are shared"


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as server:
        assert server.call("CONFIG", "SET", "requirepass", "word") == b"+OK\r\n"
        yield server


def named(child: MasterChild, name: str) -> list[psutil.Process]:
    """The processes of a daemon that have this name, whoever their parent is."""
    assert child.process is not None
    return [each for each in child.process.children(recursive=True) if each.name() == name]


def test_outside_of_the_jail_as_mail_owner(tmp_path: Path, redis: Redis) -> None:
    """Files of root, that nobody else can read; a farm process that is killed comes back."""
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    password = write(tmp_path / "password", "word\n")
    child = MasterChild(
        options=("-l", "-t", "unix", "-V", "-u", "-c"),
        prelude=REPLACED_SOON,
        tlsmgr_cf={
            "tlsmgr_worker_processes": "1",
            "tlsmgr_farm_secret_file": str(secret),
            "tlsmgr_farm_store": redis.url,
            "tlsmgr_farm_store_password_file": str(password),
            "tlsmgr_farm_deadline": "10s",
        },
    )
    with child:
        child.wait_until_ready(workers=1)
        wait_until(lambda: SHARED in child.log(), 30)
        wait_until(lambda: SHARED in child.log_file.read_text(), 30)  # in the mail log as well
        (farm,), (keeper,) = named(child, "tlsmgr-farm"), named(child, "tlsmgr-keeper")
        owner = pwd.getpwnam("postfix")
        for process in (farm, keeper):
            assert set(process.uids()) == {owner.pw_uid}
            assert set(process.gids()) == {owner.pw_gid}
            assert os.readlink(f"/proc/{process.pid}/root") == "/"
        for number in range(2):
            assert ask(str(child.socket), update(b"smtp", b"%d" % number, SESSION)) == OK
            assert ask(str(child.socket), lookup(b"smtp", b"none %d" % number)) == NO_SESSION
            assert ask(str(child.socket), lookup(b"smtp", b"%d" % number)) == found(SESSION)
            wait_for(lambda: b":%d\r\n" % (number + 1) in stored(redis), "in the engine")  # noqa: B023
            end = len(child.log())
            (farm,) = named(child, "tlsmgr-farm")
            farm.kill()
            wait_until(lambda: SHARED in child.log()[end:], 30)  # noqa: B023
        keeper.kill()
        wait_until(lambda: "the farm process cannot start in the jail" in child.log(), 30)
        assert ask(str(child.socket), lookup(b"smtp", b"none")) == NO_SESSION
        assert ask(str(child.socket), lookup(b"smtp", b"1")) == found(SESSION)
    assert not farm.is_running()


def stored(redis: Redis) -> bytes:
    """How many sessions there are."""
    return redis.ask(b"AUTH word\r\nDBSIZE\r\n")
