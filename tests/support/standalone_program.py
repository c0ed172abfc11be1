"""The program that a person starts, run to its end."""

from __future__ import annotations

import subprocess
import sys

from support.daemon_process import PATIENCE, PROGRAM, Daemon


def run(daemon: Daemon, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in the daemon's environment until it ends by itself."""
    return subprocess.run(
        [sys.executable, *PROGRAM, *arguments],
        env={**daemon.environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def fatal_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why there was no start."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if "fatal: " in line]
    assert "Traceback" not in result.stderr
    return line.partition("fatal: ")[2]
