"""bootstrap: the note of a start, and what becomes of a daemon that cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

from tlsmgr.bootstrap import NOTE, REASON_LIMIT, Note


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, as the launcher leaves it; we are the daemon."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENERATION", "7")
    path = tmp_path / NOTE
    path.parent.mkdir()
    path.write_text(f"starting {os.getppid()}\n")
    return path


def test_a_daemon_that_serves_empties_the_note(note: Path) -> None:
    start = Note()
    start.close()
    assert note.read_text() == ""
    assert not start.fail("later")
    start.close()
    assert note.read_text() == ""


def test_a_failure_leaves_its_reason_in_one_line(note: Path) -> None:
    assert Note().fail("one\ntwo \x1b[1m" + "x" * 2 * REASON_LIMIT)
    text = note.read_text()
    assert text.startswith(f"failed {os.getppid()} one?two ?[1mxxx")
    assert text.count("\n") == 1
    assert len(text) == REASON_LIMIT + 1


def test_a_note_that_cannot_be_emptied_ends_nobody(note: Path) -> None:
    start = Note()
    os.close(start._file)
    start._file = os.open(note, os.O_RDONLY)
    start.close()
    assert note.read_text().startswith("starting")
    assert start._file < 0


@pytest.mark.parametrize("text", ["", "starting 1234567\n", "stock 1 x\n", "starting\n"])
def test_a_note_of_another_start_is_left_alone(note: Path, text: str) -> None:
    note.write_text(text)
    start = Note()
    start.close()
    assert not start.fail("reason")
    assert note.read_text() == text


def test_without_a_note_or_without_master(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = note.read_text()
    monkeypatch.delenv("GENERATION")
    assert not Note().fail("reason")
    assert note.read_text() == before
    monkeypatch.setenv("GENERATION", "7")
    note.unlink()
    assert not Note().fail("reason")


def test_a_link_is_not_followed(note: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    note.rename(other)
    note.symlink_to(other)
    assert not Note().fail("reason")
    assert other.read_text().startswith("starting")


@pytest.mark.parametrize("noted", [True, False])
def test_a_daemon_that_cannot_be_imported(note: Path, noted: bool) -> None:
    if not noted:
        note.unlink()
    else:
        note.write_text(f"starting {os.getpid()}\n")
    done = subprocess.run(
        [sys.executable, "-I", "-S", CHECKOUT / "tlsmgr" / "bootstrap.py", "-l", "-t", "unix"],
        capture_output=True,
        text=True,
        check=False,
    )
    missing = "ModuleNotFoundError: No module named '"
    if noted:
        assert (done.returncode, done.stderr) == (0, "")
        assert missing in note.read_text()
    else:
        assert done.returncode == 1
        assert done.stderr.startswith(f"tlsmgr: fatal: {missing}")
