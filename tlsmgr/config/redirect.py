"""Files that Postfix would write into a directory of somebody else go to data_directory.

Pure but for one stat(2) of a directory, which must be done as mail_owner: the daemon calls this
after it has taken on that user's identity and before it enters the jail. Never fatal; each
redirection brings Postfix's two warnings. Only the owner of the directory counts: neither its mode
nor the file itself.

Rules: Postfix data_redirect.c, sane_basename.c.
"""

import os
from typing import NamedTuple

from tlsmgr.config.syntax import Warn


class WritableDir(NamedTuple):
    """The user that may own a directory to write to, and where files go otherwise."""

    owner_name: str
    owner_uid: int
    data_directory: str


def redirect(path: str, what: str, writable: WritableDir, warn: Warn) -> str:
    """Where to write a file meant for `path`.

    `what` is how the warning names it: `file PATH`, or `table TYPE:NAME` as in main.cf.
    A path whose directory cannot be looked at is left as it is: to open it will fail.
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


def directory_name(path: str) -> str:
    """The directory of a file; `.` for a bare name or none, `/` for the root."""
    stripped = path.rstrip("/")
    if not stripped:
        return "/" if path else "."
    directory, slash, _name = stripped.rpartition("/")
    return directory.rstrip("/") or slash or "."


def base_name(path: str) -> str:
    """The last part of a path; `.` when there is none, `/` for the root."""
    stripped = path.rstrip("/")
    if not stripped:
        return "/" if path else "."
    return stripped.rpartition("/")[2]
