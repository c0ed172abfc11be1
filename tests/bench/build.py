"""build - the tool's two C programs, made when it runs, where there is a C compiler.

They are too small to be worth a build step of the package. A compiler that fails is as good as
none, but for one warning with what it said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tlsmgr import log

SOURCES = Path(__file__).parent
GENERATOR_IN_PYTHON = (sys.executable, "-m", "bench.generator")


def compiler() -> str | None:
    """The C compiler: $CC, or else cc; None when there is none."""
    return shutil.which(os.environ.get("CC") or "cc")


def build(name: str, directory: Path) -> Path | None:
    """The program made of NAME.c in that directory; None when it can't be made."""
    program, cc = directory / name, compiler()
    if program.exists():
        return program
    if cc is None:
        return None
    command = [cc, "-O2", "-o", str(program), str(SOURCES / f"{name}.c")]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode != 0:
        log.warning(f"cannot compile {name}.c: {run.stdout.strip() or run.returncode}")
        return None
    return program


def generator_command(directory: Path) -> Sequence[str]:
    """What to start for a load generator: the one in C if possible, else the one in Python."""
    program = build("generator", directory)
    return GENERATOR_IN_PYTHON if program is None else (str(program),)
