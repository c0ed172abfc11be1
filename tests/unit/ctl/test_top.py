"""tlsmgrctl top in a real terminal, that of tmux(1): shown, resized, ended."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.daemon_process import wait_for
from support.status_samples import ControlSocket, busy, degraded

COMMAND = [sys.executable, "-m", "tlsmgr.ctl.main"]
need_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Terminal:
    """A terminal of 80x24 in which a command runs, and its exit status is shown at the end."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        shell = f"cd {shlex.quote(str(CHECKOUT))}; {shlex.join(command)}; echo exit $?; exec cat"
        self("new-session", "-d", "-x80", "-y24", shell)

    def __call__(self, *arguments: str) -> str:
        """Run a command of tmux; return its output."""
        run = subprocess.run(
            [*self._tmux, *arguments],
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return run.stdout

    def screen(self) -> list[str]:
        return self("capture-pane", "-p").split("\n")[:-1]

    def wait_for(self, text: str) -> None:
        wait_for(lambda: any(text in line for line in self.screen()), f"{text} on the screen")


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path / "s", busy) as control:
        yield control


@pytest.fixture
def terminal(tmp_path: Path, control: ControlSocket) -> Iterator[Terminal]:
    """A terminal with `top`."""
    options = ["--socket", str(tmp_path / "s"), "--interval", "0.1"]
    terminal = Terminal(tmp_path, [*COMMAND, "top", *options])
    yield terminal
    terminal("kill-server")


def is_small(screen: list[str]) -> bool:
    return screen[0].startswith("tlsmgr 1.0  pid 4711") and "CACHE" not in "".join(screen)


@need_tmux
def test_it_is_shown_resized_and_ended(terminal: Terminal, control: ControlSocket) -> None:
    terminal.wait_for("REQUEST    PER S   TOTAL")
    terminal.wait_for("seed         100   ")
    control.answer = lambda seconds: busy(seconds, workers=40)
    terminal.wait_for("and 35 more")
    assert len(terminal.screen()) == 24
    terminal("resize-window", "-x", "120", "-y", "40")
    terminal.wait_for("and 19 more")
    terminal("resize-window", "-x", "30", "-y", "8")
    wait_for(lambda: is_small(terminal.screen()), "the first lines on the small screen")
    terminal("resize-window", "-x", "80", "-y", "24")
    terminal.wait_for("and 35 more")
    terminal("send-keys", "q")
    terminal.wait_for("exit 0")
    assert "REQUEST" not in "".join(terminal.screen())  # the terminal is as it was before


@need_tmux
def test_a_daemon_that_goes_and_comes_back(
    terminal: Terminal, control: ControlSocket, tmp_path: Path
) -> None:
    path = tmp_path / "s-control"
    terminal.wait_for("pid 4711")
    path.rename(tmp_path / "away")
    terminal.wait_for("no answer, trying again: connect to")
    control.answer = lambda seconds: degraded(busy(seconds), "no room for sessions")
    (tmp_path / "away").rename(path)
    terminal.wait_for("! no room for sessions")
    terminal("send-keys", "q")
    terminal.wait_for("exit 0")


def failure(*arguments: str) -> str:
    run = subprocess.run(
        [*COMMAND, "top", *arguments],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode != 0, run.stdout) == (True, "")
    return run.stderr.splitlines()[-1]


def test_without_a_terminal() -> None:
    assert failure("--socket", "/nonexistent") == (
        "tlsmgrctl: top needs a terminal; `tlsmgrctl status` prints the same once"
    )


@pytest.mark.parametrize("interval", ["0", "nan", "soon", "-1"])
def test_a_bad_interval(interval: str) -> None:
    reason = f"not a time from 0.05 to 3600 seconds: {interval}"
    assert failure(f"--interval={interval}").endswith(reason)


def test_no_daemon_is_a_plain_line(tmp_path: Path) -> None:
    reason = f"connect to {tmp_path}/s: No such file or directory; no tlsmgr serves there"
    assert refused_in_a_terminal(tmp_path) == f"tlsmgrctl: {reason}\n"


def refused_although_served(directory: Path, **environment: str) -> str:
    with ControlSocket(directory / "s", busy):
        return refused_in_a_terminal(directory, **environment)


def refused_in_a_terminal(directory: Path, **environment: str) -> str:
    """The line on standard error of a `top` that does not start."""
    master, slave = pty.openpty()
    try:
        run = subprocess.run(
            [*COMMAND, "top", "--socket", directory / "s"],
            cwd=CHECKOUT,
            env={**os.environ, **environment},
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(slave)
        os.close(master)
    assert run.returncode == 1
    return run.stderr


def test_a_terminal_that_is_unknown(tmp_path: Path) -> None:
    errors = refused_although_served(tmp_path, TERM="no-such-terminal")
    assert errors.startswith("tlsmgrctl: this terminal cannot be used: ")


def test_a_terminal_that_cannot_move_the_cursor(tmp_path: Path) -> None:
    """On it, curses shows an empty screen."""
    assert refused_although_served(tmp_path, TERM="dumb") == (
        "tlsmgrctl: this terminal cannot be used: dumb cannot move the cursor\n"
    )


def test_a_python_without_curses(tmp_path: Path) -> None:
    (tmp_path / "curses.py").write_text("raise ImportError")
    errors = refused_although_served(tmp_path, PYTHONPATH=str(tmp_path))
    assert errors == "tlsmgrctl: top needs curses, which this Python lacks\n"
