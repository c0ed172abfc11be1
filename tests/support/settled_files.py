"""settled_files - configuration files that nobody waits for.

Postfix reads a file again and again until its last change is two seconds ago, and ours until two
readings in a row are equal.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


def write_settled(path: Path, content: str) -> None:
    """Write a file whose last change seems to be a while ago; leave one with that content alone."""
    data = content.encode(errors="surrogateescape")
    if path.is_file() and path.read_bytes() == data:
        return
    path.write_bytes(data)
    os.utime(path, (time.time() - 100,) * 2)


def empty_configuration(directory: Path) -> str:
    """Make the directory of a Postfix that has no service; return its path.

    Without its files, postconf(1) would pause for a second after its fatal error.
    """
    directory.mkdir()
    for name in ("main.cf", "master.cf"):
        write_settled(directory / name, "")
    return str(directory)
