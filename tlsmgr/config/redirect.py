"""redirect - files for a directory that mail_owner does not own go to data_directory instead.

Pure but for one stat(2) of a directory. The daemon calls it as mail_owner, before the jail, because
another user may not be able to look at that directory. Never fatal; each redirection brings
Postfix's two warnings. Only the owner of the directory counts, not its mode and not the file.

Rules: Postfix data_redirect.c, sane_basename.c.
"""

import os
from typing import NamedTuple

from tlsmgr.config.load import Configuration
from tlsmgr.config.syntax import Warn


class WritableDir(NamedTuple):
    """The user whose directories may be written to, and the directory for all other files."""

    owner_name: str
    owner_uid: int
    data_directory: str


def redirect(path: str, what: str, writable: WritableDir, warn: Warn) -> str:
    """Return the path to write to in place of `path`.

    `what` names the file in the warning: `file PATH`, or `table TYPE:NAME` as in main.cf. A path
    whose directory cannot be looked at is returned as it is; opening it will fail.
    """
    directory = directory_name(path)
    try:
        owner = os.stat(directory).st_uid
    except OSError:
        return path
    if owner == writable.owner_uid:
        return path
    warn(f"request to update {what} in non-{writable.owner_name} directory {directory}")
    target = f"{writable.owner_name}-owned data_directory {writable.data_directory}"
    warn(f"redirecting the request to {target}")
    return f"{writable.data_directory}/{base_name(path)}"


def exchange_path(conf: Configuration, writable: WritableDir, warn: Warn) -> str:
    """Return where the PRNG exchange file is, redirected if need be; "" for none."""
    name = conf.text("tls_random_exchange_name")
    return redirect(name, f"file {name}", writable, warn) if name else ""


def directory_name(path: str) -> str:
    """Return the directory of a path: `.` for a bare name or an empty path, `/` for the root."""
    stripped = path.rstrip("/")
    if not stripped:
        return "/" if path else "."
    directory, slash, _name = stripped.rpartition("/")
    return directory.rstrip("/") or slash or "."


def base_name(path: str) -> str:
    """Return the last part of a path: `.` for an empty path, `/` for the root."""
    stripped = path.rstrip("/")
    if not stripped:
        return "/" if path else "."
    return stripped.rpartition("/")[2]
