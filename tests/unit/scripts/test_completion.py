"""The completion of tlsmgrctl for bash: in step with the command line, and what bash offers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

from tlsmgr.ctl.main import COMMANDS
from tlsmgr.ctl.requests import REQUESTS

GENERATOR = CHECKOUT / "scripts/gen-completion"
FILE = CHECKOUT / "scripts/completion/tlsmgrctl"
REFRESH = ".venv/bin/python scripts/gen-completion scripts/completion/tlsmgrctl"
BASH = shutil.which("bash") or ""
need_bash = pytest.mark.skipif(not BASH, reason="bash is not installed")


def test_it_is_in_step_with_the_command_line() -> None:
    run = subprocess.run(
        [sys.executable, GENERATOR], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )
    assert run.stderr == ""
    assert run.stdout == FILE.read_text(), f"the options have changed; run: {REFRESH}"


def complete(directory: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words, in that directory."""
    script = (
        'source "$1"; shift; COMP_WORDS=(tlsmgrctl "$@"); COMP_CWORD=$#; _tlsmgrctl;'
        ' [[ ${#COMPREPLY[@]} -eq 0 ]] || printf "%s\\n" "${COMPREPLY[@]}"'
    )
    run = subprocess.run(
        [BASH, "--norc", "-c", script, "bash", FILE, *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


@need_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["che"], ["check"]),
        (["-c", "etc", "che"], ["check"]),
        (["look"], ["lookup"]),
        (["lookup", ""], ["smtpd", "smtp", "lmtp"]),
        (["lookup", "--raw", "l"], ["lmtp"]),
        (["--timeout", "7", "lookup", "l"], ["lmtp"]),
        (["lookup", "smtp", ""], []),
        (["lookup", "--r"], ["--raw"]),
        (["--timeout", ""], []),
        (["farm", ""], ["new", "advance"]),
        (["farm", "new", "f"], ["file one"]),
        (["farm", "new", "file one", ""], []),
        (["-c", ""], ["etc"]),
        (["metrics", "--listen", "u"], ["unix:"]),
        (["metrics", "--textfile", "f"], ["file one"]),
        (["report", "file one", "f"], ["file one"]),
        (["report", "--j"], ["--json"]),
        (["nonsense", "x"], []),
    ],
)
def test_what_is_offered(tmp_path: Path, words: list[str], offered: list[str]) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "file one").touch()
    assert complete(tmp_path, *words) == offered


@need_bash
def test_all_commands_are_offered(tmp_path: Path) -> None:
    assert complete(tmp_path, "") == [*REQUESTS, *COMMANDS]


@need_bash
def test_it_is_registered() -> None:
    script = 'source "$1"; complete -p tlsmgrctl'
    run = subprocess.run([BASH, "-c", script, "bash", FILE], capture_output=True, text=True)
    assert run.stdout == "complete -o filenames -F _tlsmgrctl tlsmgrctl\n"
