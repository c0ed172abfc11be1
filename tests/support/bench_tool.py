"""The measuring tool, run as a program, and what it needs of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench import build
from bench.sandbox import postfix_missing
from support.checkout import CHECKOUT

PATIENCE = 100.0  # seconds for one run of the tool on a loaded machine
QUICK = ("--seconds", "0.1", "--rounds", "2")

Json = dict[str, Any]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The tool, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "bench.main", *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "tests"), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def measure(path: Path, *arguments: str, status: int = 0) -> Json:
    """What the tool writes with --json."""
    done = run(*arguments, "--json", str(path))
    assert done.returncode == status, done.stdout + done.stderr
    found: Json = json.loads(path.read_text())
    return found


def need_compiler() -> None:
    if build.compiler() is None:
        pytest.skip("there is no C compiler")


def need_postfix() -> None:
    if reason := postfix_missing():
        pytest.skip(reason)
