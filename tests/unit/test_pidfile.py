"""The pid file of the standalone daemon: what it replaces, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tlsmgr.log import Fatal
from tlsmgr.pidfile import pid_file

OURS = f"{os.getpid()}\n"


def pid_of_nobody() -> int:
    """The process id of a process that has gone."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def refused(path: Path, reason: str) -> None:
    with pytest.raises(Fatal, match=reason), pid_file(str(path)):
        pytest.fail("it was accepted")


def test_it_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        assert path.read_text() == OURS
        assert list(tmp_path.iterdir()) == [path]
    assert not path.exists()


def test_a_file_that_this_process_has_made_is_left_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(OURS)
    inode = path.stat().st_ino
    with pid_file(str(path), is_written=True):
        assert path.stat().st_ino == inode
    assert not path.exists()
    with pid_file(str(path), is_written=True):
        assert not path.exists()
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_the_file_of_another_one_stays_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


@pytest.mark.parametrize("content", ["", "{pid}", "{pid}\n"])
def test_a_left_pid_file_is_replaced_and_another_name_of_it_kept(
    tmp_path: Path, content: str
) -> None:
    path, other = tmp_path / "pid", tmp_path / "other"
    before = content.format(pid=pid_of_nobody())
    other.write_text(before)
    path.hardlink_to(other)
    with pid_file(str(path)):
        assert path.read_text() == OURS
        assert other.read_text() == before


def test_a_pid_that_was_given_to_a_later_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(OURS)
    os.utime(path, (0, 0))
    with pid_file(str(path)):
        assert path.stat().st_mtime > 0


def test_the_pid_file_of_a_process_that_runs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(OURS)
    refused(path, f"is the pid file of process {os.getpid()}, which runs")
    assert path.read_text() == OURS


@pytest.mark.parametrize("content", ["precious\n", "1 2\n", "-1\n", "1" * 100, "12\n\n"])
def test_other_text_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pid"
    path.write_text(content)
    refused(path, "exists and is not a pid file")
    assert path.read_text() == content


@pytest.mark.parametrize("target", ["12\n", None])
def test_a_link_is_refused(tmp_path: Path, target: str | None) -> None:
    path = tmp_path / "pid"
    path.symlink_to(tmp_path / "target")
    if target:
        (tmp_path / "target").write_text(target)
    refused(path, "exists and is not a pid file")
    assert path.is_symlink()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "missing" / "pid", "cannot write .*: No such file or directory")


def test_nothing_is_left_when_the_file_cannot_be_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "rename", fail)
    refused(tmp_path / "pid", "cannot write .*: Input/output error")
    assert list(tmp_path.iterdir()) == []
