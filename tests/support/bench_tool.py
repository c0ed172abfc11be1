"""bench_tool - the measuring tool run as a program, for its own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.drive import NO_COMPILER, compiler
from support.checkout import CHECKOUT

COMMAND = (sys.executable, "-m", "bench.main")
PATIENCE = 100.0  # seconds for one run of the tool on a loaded machine
QUICK = ("--seconds", "0.1", "--rounds", "2", "--repeats", "0", "--sessions", "500")

NEEDS_COMPILER = pytest.mark.skipif(compiler() is None, reason=NO_COMPILER)

Json = dict[str, Any]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of the tool."""
    return {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests"), **more}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the tool to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def measure(path: Path, *arguments: str, status: int = 0) -> Json:
    """Run the tool and return what it wrote with --json."""
    done = run(*arguments, "--json", str(path))
    assert done.returncode == status, done.stdout + done.stderr
    found: Json = json.loads(path.read_text())
    return found
