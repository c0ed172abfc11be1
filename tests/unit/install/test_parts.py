"""The parts of tlsmgr-postfix(8) that need no Postfix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

from tlsmgr.install import instance, trial
from tlsmgr.install.__main__ import main
from tlsmgr.install.change import SIGNALS
from tlsmgr.install.instance import Instance, Running, Service, check_version
from tlsmgr.install.launcher import NAME, Content, Launcher
from tlsmgr.log import Fatal

ROOT = CHECKOUT


def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 64
    assert main([]) == 64
    assert main(["--help"]) == 0
    assert "tlsmgr-postfix" in capsys.readouterr().out


def test_who_is_not_root_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["status"]) == 1
    assert capsys.readouterr().err == "tlsmgr-postfix: fatal: only root can do this\n"
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_way_back_needs_the_standard_library_only() -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tlsmgr.install.__main__"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


def test_a_missing_postfix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("tlsmgr.install.instance.SEARCH_PATH", "/nonexistent")
    with pytest.raises(Fatal, match="postconf is missing"):
        Instance(None)


@pytest.mark.parametrize("version", ["3.5.25", "2.11.0", "3.5-20200101"])
def test_a_postfix_without_the_announcement_is_refused(version: str) -> None:
    with pytest.raises(Fatal, match=r"is too old: 3\.6 or later is needed"):
        check_version(version)


@pytest.mark.parametrize("version", ["3.6.0", "3.7.11", "3.12-20260821", "4.0"])
def test_a_postfix_with_the_announcement_is_accepted(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("-v", ["-v"]),
        ("-v  -o a=b", ["-v", "-o", "a=b"]),
        ("-o { a = b c }", ["-o", "a = b c"]),
        ("-o {a=${b?{c d}:{e}}} -v", ["-o", "a=${b?{c d}:{e}}", "-v"]),
    ],
)
def test_arguments_are_split_as_master_does(text: str, words: list[str]) -> None:
    assert trial.split(text) == words


def test_the_launcher_says_what_was_written(tmp_path: Path) -> None:
    launcher = Launcher(str(tmp_path), "/usr/sbin")
    content = Content("/opt/it's here", {"/etc/postfix": "tlsmgr", "/etc/post fix": "../x/tlsmgr"})
    assert launcher.read() is None
    launcher.write(launcher.rendered(content))
    assert launcher.read() == content
    assert Path(launcher.path).stat().st_mode & 0o777 == 0o755
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]


def test_files_that_others_may_change_are_named(tmp_path: Path) -> None:
    for name in ("tlsmgr", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to("/bin/sh")
    module = tmp_path / "tlsmgr/daemon.py"
    module.touch(mode=0o644)
    before = set(trial.unsafe_paths(str(tmp_path)))  # empty for root, all of it for others
    module.chmod(0o664)
    assert set(trial.unsafe_paths(str(tmp_path))) == before | {str(module)}


def test_a_process_that_ends_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between asking for a child's parent and for its command line: it is none of ours, then."""
    (tmp_path / "pid").mkdir()
    (tmp_path / "pid" / "master.pid").write_text(f"{os.getpid():10}\n")
    system = object.__new__(Instance)
    system.parameters = {"queue_directory": str(tmp_path), "daemon_directory": "/nowhere"}
    service = Service("tlsmgr", False, False, "1", "tlsmgr", "")
    monkeypatch.setattr(Instance, "service", lambda _: service)
    child = subprocess.Popen(["tlsmgr", "5"], executable="/bin/sleep")
    try:
        assert system.tlsmgr() == Running(child.pid, False, "tlsmgr")
        monkeypatch.setattr(instance, "_command_line", lambda _: [])
        assert system.tlsmgr() is None
    finally:
        child.kill()
        child.wait()
