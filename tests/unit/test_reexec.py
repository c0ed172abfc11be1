"""What one run of the daemon leaves to the next in the same process, and what is not taken."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tlsmgr import reexec
from tlsmgr.processes.program import Program
from tlsmgr.processes.trial import _reason
from tlsmgr.reexec import VARIABLE, Kept


@pytest.fixture
def fields(tmp_path: Path) -> Iterator[list[Any]]:
    """A good message; its descriptors may be inherited, as after an exec."""
    lock = os.open(tmp_path, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        yield [os.getpid(), [listener.fileno()], lock, 7, [8, 9], True]
    os.close(lock)


def taken(fields: object) -> Kept | None:
    """What is taken; the variable is removed in any case."""
    environment = {VARIABLE: fields if isinstance(fields, str) else json.dumps(fields), "A": "B"}
    kept = reexec.take(environment)
    assert environment == {"A": "B"}
    return kept


def test_what_goes_over(fields: list[Any]) -> None:
    kept = taken(fields)
    assert kept == Kept((fields[1][0],), fields[2], 7, (8, 9), True)
    assert not os.get_inheritable(fields[1][0]), "no child gets it by accident"
    assert not os.get_inheritable(fields[2])
    place = kept.place()
    assert place.listeners[0].getsockname().endswith("/socket")
    assert not place.listeners[0].getblocking()
    assert (place.lock, place.inode) == (fields[2], 7)
    place.listeners[0].detach()


def test_nothing_at_the_first_start() -> None:
    assert reexec.take({}) is None


@pytest.mark.parametrize("text", ["", "{", "7", "[]", "null", "[1,2,3]", "9" * 5000, "[" * 5000])
def test_what_is_no_message(text: str) -> None:
    assert taken(text) is None


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, 1), (0, "x"), (1, []), (1, 3), (1, [-1]), (1, [1 << 40]), (2, -1), (4, ["x"]), (4, 1)],
)
def test_what_is_not_ours(fields: list[Any], index: int, value: object) -> None:
    fields[index] = value
    assert taken(fields) is None


def test_descriptors_of_another_kind(fields: list[Any]) -> None:
    listener, lock = fields[1][0], fields[2]
    assert taken([fields[0], [lock], lock, *fields[3:]]) is None
    assert taken([fields[0], [listener], listener, *fields[3:]]) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        assert taken([fields[0], [other.fileno()], lock, *fields[3:]]) is None, "no listener"


def test_the_directory_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in which nothing can be found is as good as the root directory."""
    monkeypatch.chdir(tmp_path)
    assert reexec.program().directory == str(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert reexec.program().directory == "/"
    monkeypatch.undo()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert reexec.program().directory == "/"


def test_the_command_line_of_a_trial() -> None:
    program = Program(("python", "-I", "run.py", "script", "-c", "dir"), 4, "/", 0o22)
    assert program.check == ("python", "-I", "run.py", "script", "--check", "-c", "dir")


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("tlsmgr[7]: warning: a\ntlsmgr[7]: fatal: b: c\n", 1, "b: c"),
        ("Traceback:\n  x\nImportError: no lmdb\n\n", 1, "ImportError: no lmdb"),
        ("usage: x\ntlsmgr-start: error: y\n", 64, "tlsmgr-start: error: y"),
        ("", 7, "a trial ended: exit status 7"),
        ("tlsmgr[7]: warning: a\n", -9, "a trial ended: killed by signal 9"),
        ("x" * 3000, 1, "x" * 500),
    ],
)
def test_why_a_trial_failed(text: str, code: int, reason: str) -> None:
    assert _reason(text, code) == reason
