"""launcher - the program that master.cf names in place of stock tlsmgr(8), for tests.

It is a shell script that runs our daemon with this interpreter, like the one that an installation
has in daemon_directory. A test that needs a daemon with a fault gives a prelude: Python code that
runs before the daemon's main(), in the same process.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.checkout import CHECKOUT

BOOTSTRAP = str(CHECKOUT / "tlsmgr" / "bootstrap.py")
DAEMON = "import sys\n\nfrom tlsmgr import daemon\n\nsys.exit(daemon.main())\n"


@contextlib.contextmanager
def launcher(prelude: str = "") -> Iterator[str]:
    """Make a launcher in a temporary directory and yield its path."""
    directory = Path(tempfile.mkdtemp(prefix="launch-"))
    directory.chmod(0o755)
    try:
        yield write_launcher(directory, prelude)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def write_launcher(
    directory: Path, prelude: str = "", python: str = sys.executable, program: str = BOOTSTRAP
) -> str:
    """Write the launcher into this directory and return its path."""
    path = directory / "tlsmgr-launcher"
    if prelude:
        script = directory / "prelude.py"
        script.write_text(f"{prelude}\n{DAEMON}")
        program = str(script)
    path.write_text(f'#!/bin/sh\nexec {python} -I {program} "$@"\n')
    path.chmod(0o755)
    return str(path)
