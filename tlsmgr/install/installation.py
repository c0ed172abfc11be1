"""installation - where this program is: in a checkout, a package, or where pip put it.

A checkout and a package have the same shape: the scripts, and a virtual environment in .venv. What
pip installed is among the other packages of the Python that runs this. Standard library only.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

EXECUTED = ("tlsmgr", "scripts", ".venv", "setup.cfg", "setup.py")  # of a checkout, by root


class Installation(NamedTuple):
    """The directory with the package, the Python that runs it, the path of tlsmgr-postfix."""

    directory: str
    python: str
    command: str
    executed: tuple[str, ...]  # all that root executes, as files and directories

    def newest(self) -> float:
        """Return when it was changed last, in seconds of time.time().

        Packages set the time of modification, so this is the time of the change of an inode.
        """
        paths = [*Path(self.directory, "tlsmgr").rglob("*.py")]
        paths += Path(self.directory, ".venv").glob("installed*")
        return max(path.stat().st_ctime for path in paths)

    def unsafe_paths(self) -> Iterator[str]:
        """Yield what root executes, with its directories, that another user may change."""
        for path in (self.directory, os.path.realpath(self.python)):
            while path != "/":
                if _is_unsafe(path):
                    yield path
                path = os.path.dirname(path)
        for top in filter(os.path.lexists, self.executed):
            if _is_unsafe(top):
                yield top
            for directory, directories, files in os.walk(top):
                paths = (f"{directory}/{name}" for name in (*directories, *files))
                yield from filter(_is_unsafe, paths)


def find(directory: str, python: str = sys.executable) -> Installation:
    """Return the installation with its package in that directory."""
    command = f"{directory}/scripts/tlsmgr-postfix"
    if os.path.exists(command):
        executed = tuple(f"{directory}/{name}" for name in EXECUTED)
        return Installation(directory, f"{directory}/.venv/bin/python", command, executed)
    programs = os.path.dirname(python)
    settings = f"{os.path.dirname(programs)}/pyvenv.cfg"
    return Installation(
        directory, python, f"{programs}/tlsmgr-postfix", (directory, programs, settings)
    )


def _is_unsafe(path: str) -> bool:
    """Return whether a user other than root may write to it, or replace what is in it."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return status.st_uid != 0
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid != 0 or bool(others and not status.st_mode & stat.S_ISVTX)
