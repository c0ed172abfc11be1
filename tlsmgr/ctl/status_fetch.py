"""status_fetch - the status object of the running daemon, through its control socket

Each call is one connection, so that a daemon that was replaced in between is no failure. Errors are
those of tlsmgr.client; a daemon that answers nonsense is a ProtocolError.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

from tlsmgr import __version__
from tlsmgr.client import ProtocolError
from tlsmgr.client.control import ask
from tlsmgr.control_lines import StatusRequest
from tlsmgr.ctl.instance import socket_of
from tlsmgr.install.launcher import read_note
from tlsmgr.status_object import DEGRADED, IN_PLACE, Malformed, Status, as_json, parse


def fetcher(arguments: argparse.Namespace) -> Callable[[], Status]:
    """Return a function that asks the daemon that the options mean."""
    path, timeout = socket_of(arguments), arguments.timeout
    return lambda: fetch(path, timeout)


def fetch(path: str, timeout: float) -> Status:
    """Return the status of the daemon whose service socket is at `path`. TlsmgrError: none."""
    return read(fetch_text(path, timeout))


def fetch_text(path: str, timeout: float) -> str:
    """Return the same as the daemon sends it.

    Where this program is enabled and could not start, it is made here, with a pid of 0.
    """
    reason = _why_in_place(os.path.dirname(os.path.dirname(path)))
    if reason is None:
        return "\n".join(ask(path, StatusRequest(), timeout))
    text = f"tlsmgr did not start, and Postfix's own was started in its place: {reason}"
    status = Status(IN_PLACE, __version__, 0.0, DEGRADED, (text,))
    return json.dumps(as_json(status))


def _why_in_place(queue_directory: str) -> str | None:
    """Return why Postfix's own program was started in place of this one, None if it was not."""
    note = read_note(queue_directory)
    try:
        master = Path(queue_directory, "pid/master.pid").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    is_so = note.state in ("stock", "failed") and note.master == master
    return (note.reason or "no reason") if is_so else None


def read(text: str) -> Status:
    """Return the status in a reply. ProtocolError: there is none."""
    try:
        return parse(json.loads(text))
    except (ValueError, Malformed) as error:
        raise ProtocolError(f"the answer is no status object: {error}") from None
