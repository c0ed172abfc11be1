"""launcher - the program that master.cf names in place of stock tlsmgr(8), in a temporary directory

It is what an installation has under daemon_directory: a shell script that runs our daemon with this
interpreter. A test that needs a daemon with a fault gives a prelude: Python that is run before the
daemon's main(), in the same process.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DAEMON = "import sys\n\nfrom tlsmgr import daemon\n\nsys.exit(daemon.main())\n"


@contextlib.contextmanager
def launcher(prelude: str = "") -> Iterator[str]:
    """The path of a launcher in a directory of its own, which is removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="launch-"))
    directory.chmod(0o755)
    try:
        yield write_launcher(directory, prelude)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def write_launcher(directory: Path, prelude: str = "") -> str:
    """Write the launcher into that directory; returns its path."""
    path, program = directory / "tlsmgr-launcher", "-m tlsmgr.daemon"
    if prelude:
        script = directory / "prelude.py"
        script.write_text(f"{prelude}\n{DAEMON}")
        program = str(script)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I {program} "$@"\n')
    path.chmod(0o755)
    return str(path)
