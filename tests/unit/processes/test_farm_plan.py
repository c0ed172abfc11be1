"""The plan of a farm: which engines are asked, and the password file that is read for them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.own_descriptors import own_descriptors

from tlsmgr import log
from tlsmgr.config.caches import cache_settings
from tlsmgr.config.load import load
from tlsmgr.processes.farm_plan import FarmPlan, Maker
from tlsmgr.shm import SharedMemory

LONGEST = 1024  # bytes of a password file


@pytest.fixture
def password(tmp_path: Path) -> Path:
    return tmp_path / "password"


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The error lines."""
    lines: list[str] = []
    monkeypatch.setattr(log, "error", lines.append)
    return lines


@pytest.fixture
def make(tmp_path: Path, password: Path) -> Iterator[list[FarmPlan]]:
    """The plans that ``plan_of`` has made, whose sockets are closed at the end."""
    made: list[FarmPlan] = []
    yield made
    for plan in made:
        for pair in plan.pairs.values():
            for end in pair:
                end.close()


def plan_with(make: list[FarmPlan], tmp_path: Path, **more: str) -> FarmPlan | None:
    """The plan of a host with a store for its only cache, which is smtp's."""
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    values = {
        "smtp_tls_session_cache_database": "btree:/nowhere/smtp",
        "tlsmgr_farm_secret_file": str(secret),
        "tlsmgr_farm_store": "unix:///nowhere",
        "tlsmgr_farm_store_password_file": str(tmp_path / "password"),
        **more,
    }
    options = [f"{name}={value}" for name, value in values.items()]
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    settings = cache_settings(conf, pytest.fail)
    plan = Maker(conf, settings, SharedMemory(8192), os.getuid()).make(range(1, 3))
    make += [plan] if plan is not None else []
    return plan


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("word\n", "word"),
        ("two words", "two words"),
        ("p\u00e4ss\n", "p\u00e4ss"),
        ("x" * LONGEST, "x" * LONGEST),
    ],
    ids=["a line", "no line end", "not ASCII", "the longest"],
)
def test_the_password_goes_to_the_engine_and_is_not_shown(
    make: list[FarmPlan],
    tmp_path: Path,
    password: Path,
    errors: list[str],
    text: str,
    found: str,
) -> None:
    write(password, text)
    plan = plan_with(make, tmp_path)
    assert errors == []
    assert plan is not None
    (engine,) = plan.engines
    assert engine.options["password"] == found
    assert found not in repr(plan)
    assert plan.caches == {b"smtp": 0}
    assert list(plan.pairs) == [1, 2]


@pytest.mark.parametrize("text", ["", "\n", "\nword\n", "x" * LONGEST + "\n"])
def test_a_file_without_a_password(
    make: list[FarmPlan], tmp_path: Path, password: Path, errors: list[str], text: str
) -> None:
    """Or with more than one could be: nothing is shared, and one line says why."""
    write(password, text)
    assert plan_with(make, tmp_path) is None
    assert errors == [
        f"option -o: tlsmgr_farm_store: {password}: expected a password in the first line,"
        " and nothing more; sessions are not shared"
    ]


@pytest.mark.parametrize("mode", [0o604, 0o610, 0o640, 0o602])
def test_a_password_file_that_others_may_use(
    make: list[FarmPlan], tmp_path: Path, password: Path, errors: list[str], mode: int
) -> None:
    write(password, "word\n", mode)
    assert plan_with(make, tmp_path) is None
    (line,) = errors
    assert f"{password}: other users have access to it; run chmod 600; sessions are not" in line


def test_no_password_file(
    make: list[FarmPlan], tmp_path: Path, password: Path, errors: list[str]
) -> None:
    assert plan_with(make, tmp_path) is None
    (line,) = errors
    assert line.endswith(f"open {password}: No such file or directory; sessions are not shared")


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("smtp_tls_session_cache_database", "there is no session cache to share"),
        ("tlsmgr_farm_secret_file", "tlsmgr_farm_secret_file is not set"),
    ],
)
def test_nothing_to_share_or_no_secret_to_share_it_under(
    make: list[FarmPlan],
    tmp_path: Path,
    password: Path,
    errors: list[str],
    parameter: str,
    reason: str,
) -> None:
    write(password, "word\n")
    assert plan_with(make, tmp_path, **{parameter: ""}) is None
    (line,) = errors
    assert line.endswith(f"{reason}; sessions are not shared")


def test_sockets_that_cannot_be_had(
    make: list[FarmPlan],
    tmp_path: Path,
    password: Path,
    errors: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with very many workers; the daemon starts without what is shared."""
    write(password, "word\n")
    before = own_descriptors()
    own = socket.socketpair
    made: list[bool] = []

    def one(*arguments: Any) -> Any:
        if made:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(True)
        return own(*arguments)

    monkeypatch.setattr(socket, "socketpair", one)
    assert plan_with(make, tmp_path) is None
    (error,) = errors
    assert error == (
        "no sockets for the farm process: Too many open files; sessions are not shared"
    )
    assert own_descriptors() == before
