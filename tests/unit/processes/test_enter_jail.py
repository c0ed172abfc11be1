"""The jail: root directory, working directory and identity of a process that entered it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tlsmgr.log import Fatal
from tlsmgr.processes import jail

NOBODY = jail.Identity("nobody", 65534, 65534)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def in_child(act: Callable[[], Any]) -> Any:
    """Return what the function returns in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            result: Any = act()
        except Fatal as error:
            result = error.text
        finally:
            os.write(writer, pickle.dumps(result))
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)


def identity() -> tuple[Any, ...]:
    return os.getresuid(), os.getresgid(), os.getgroups()


@AS_ROOT
def test_the_working_directory_is_in_the_jail(tmp_path: Path) -> None:
    """Wherever it was before: a process with a directory outside is in no jail."""
    (tmp_path / "mark").touch()

    def enter() -> tuple[str, list[str]]:
        os.chdir("/usr")
        jail.enter(NOBODY._replace(chroots=True), str(tmp_path))
        return os.getcwd(), os.listdir(".")

    assert in_child(enter) == ("/", ["mark"])


@AS_ROOT
def test_privileges_are_gone_for_good(tmp_path: Path) -> None:
    def enter() -> tuple[Any, ...]:
        jail.enter(NOBODY._replace(unprivileged=True), str(tmp_path))
        try:
            os.setuid(0)
        except PermissionError:
            return identity()
        return ()

    uids, gids, groups = in_child(enter)
    assert uids == (65534,) * 3
    assert gids == (65534,) * 3
    assert 0 not in groups


@AS_ROOT
def test_nothing_changes_without_the_options(tmp_path: Path) -> None:
    def enter() -> tuple[Any, ...]:
        os.chdir("/usr")
        jail.enter(NOBODY, str(tmp_path))
        return identity(), os.getcwd(), os.path.exists("/usr/bin")

    assert in_child(enter) == (identity(), "/usr", True)


@AS_ROOT
def test_acting_as_the_owner_for_a_while() -> None:
    def act() -> list[tuple[Any, ...]]:
        found = [identity()]
        with jail.effective(NOBODY):
            found.append(identity())
        return [*found, identity()]

    before, during, after = in_child(act)
    assert before == after
    assert during[0] == (0, 65534, 0)
    assert during[1] == (before[1][0], 65534, before[1][2])
    assert during[2] == [65534]


@AS_ROOT
def test_the_owner_is_left_after_an_error() -> None:
    def act() -> bool:
        try:
            with jail.effective(NOBODY):
                raise OSError
        except OSError:
            return os.geteuid() == 0
        return False

    assert in_child(act) is True


def test_no_root_directory_is_fatal(tmp_path: Path) -> None:
    def enter() -> None:
        jail.enter(NOBODY._replace(chroots=True), str(tmp_path / "none"))

    assert in_child(enter).startswith("cannot become user nobody: ")
