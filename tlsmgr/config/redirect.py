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


class Haven(NamedTuple):
    """The user that may own a directory to write to, and where files go otherwise."""

    owner_name: str
    owner_uid: int
    data_directory: str


def redirect(path: str, what: str, haven: Haven, warn: Warn) -> str:
    """Where to write a file meant for `path`.

    `what` is how the warning names it: `file PATH`, or `table TYPE:NAME` as in main.cf.
    A path whose directory cannot be looked at is left as it is: to open it will fail.
    """
    directory = directory_name(path)
    try:
        owner = os.stat(directory).st_uid
    except OSError:
        return path
    if owner == haven.owner_uid:
        return path
    warn(f"request to update {what} in non-{haven.owner_name} directory {directory}")
    warn(
        f"redirecting the request to {haven.owner_name}-owned data_directory {haven.data_directory}"
    )
    return f"{haven.data_directory}/{base_name(path)}"


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
