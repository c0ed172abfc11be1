"""The parts of tlsmgr-postfix(8) that need no Postfix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.daemon_process import wait_for

from tlsmgr import __version__
from tlsmgr.install import installation, instance
from tlsmgr.install.__main__ import SIGNALS, main
from tlsmgr.install.instance import Postfix, check_version, command_places
from tlsmgr.install.launcher import NAME, Launcher, Note, read_note
from tlsmgr.log import Fatal

ROOT = CHECKOUT


def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 64
    assert main([]) == 64
    assert main(["--help"]) == 0
    assert "tlsmgr-postfix" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tlsmgr-postfix {__version__}\n"


@pytest.mark.parametrize(("command", "status"), [("enable", 1), ("status", 2)])
def test_only_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, status: int
) -> None:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main([command]) == status
    assert capsys.readouterr().err == "tlsmgr-postfix: fatal: only root can do this\n"
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("module", ["tlsmgr.install.__main__", "tlsmgr.bootstrap"])
def test_the_standard_library_is_enough(module: str) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


def test_a_missing_postfix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("tlsmgr.install.instance.SEARCH_PATH", "/nonexistent")
    with pytest.raises(Fatal, match="postconf is missing"):
        Postfix(None)


@pytest.mark.parametrize("version", ["3.5.25", "2.11.0", "3.5-20200101"])
def test_a_postfix_without_the_announcement_is_refused(version: str) -> None:
    with pytest.raises(Fatal, match=r"is too old: 3\.6 or later is needed"):
        check_version(version)


@pytest.mark.parametrize("version", ["3.6.0", "3.7.11", "3.12-20260821", "4.0"])
def test_a_postfix_with_the_announcement_is_accepted(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("tlsmgr unix - - y 1000? 1 tlsmgr\n", ["tlsmgr unix - - y 1000? 1 "]),
        ("# tlsmgr unix - - y 1 1 x\na unix - - y 1 1 b\n tlsmgr unix - - y 1 1 tlsmgr\n", []),
        ("tlsmgr\n#c\n\n unix - -\n y 1 1\n\ttlsmgr -v", ["tlsmgr\n#c\n\n unix - -\n y 1 1\n\t"]),
        ("tlsmgr inet - - y 1000? 1 tlsmgr\n", []),
        ("tlsmgr unix - - y 1000? 1\n", []),
    ],
)
def test_the_command_is_found(text: str, before: list[str]) -> None:
    places = command_places(text, "tlsmgr")
    assert [text[:start] for start, _ in places] == before
    assert all(text[start:end] == "tlsmgr" for start, end in places)


def test_the_launcher_is_tried_beside_its_place(tmp_path: Path) -> None:
    launcher = Launcher(str(tmp_path), "/usr/sbin")
    assert launcher.checkout() is None
    with launcher.candidate(installation.find("/opt/it's here")) as path:
        assert Path(path).stat().st_mode & 0o777 == 0o755
        assert launcher.install(path)
    assert launcher.checkout() == "/opt/it's here"
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]
    with launcher.candidate(installation.find("/opt/it's here")) as path:
        assert not launcher.install(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]


def test_the_note_is_read(tmp_path: Path) -> None:
    (tmp_path / "pid").mkdir()
    assert read_note(str(tmp_path)) == Note()
    note = tmp_path / "pid" / f"{NAME}.start"
    for text, expected in (("", Note()), ("stock 17 no luck\n", Note("stock", "17", "no luck"))):
        note.write_text(text)
        assert read_note(str(tmp_path)) == expected


def test_a_process_that_ends_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reads of two files in /proc: then it is none of ours."""
    (tmp_path / "pid").mkdir()
    (tmp_path / "pid" / "master.pid").write_text(f"{os.getpid():10}\n")
    system = object.__new__(Postfix)
    system.parameters = {"queue_directory": str(tmp_path), "daemon_directory": "/nowhere"}
    before = time.time()
    child = subprocess.Popen(["tlsmgr", "5"], executable="/bin/sleep")
    arguments = Path(f"/proc/{child.pid}/cmdline")
    try:
        wait_for(arguments.read_bytes, "its command line")  # set after the descriptors are closed
        found = system.tlsmgr()
        assert found is not None
        assert (found.pid, found.ours) == (child.pid, False)
        assert before - 0.1 < found.started < time.time() + 0.1
        monkeypatch.setattr(instance, "_command_line", lambda _: [])
        assert system.tlsmgr() is None
    finally:
        child.kill()
        child.wait()
