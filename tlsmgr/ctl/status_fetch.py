"""status_fetch - the status object of the running daemon, through its control socket

Each call is one connection, so that a daemon that was replaced in between is no failure. Errors are
those of tlsmgr.client; a daemon that answers nonsense is a ProtocolError.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from tlsmgr.client import ProtocolError
from tlsmgr.client.control import ask
from tlsmgr.control_lines import StatusRequest
from tlsmgr.ctl.place import socket_of
from tlsmgr.status_object import Malformed, Status, parse


def fetcher(arguments: argparse.Namespace) -> Callable[[], Status]:
    """Return a function that asks the daemon that the options mean."""
    path, timeout = socket_of(arguments), arguments.timeout
    return lambda: fetch(path, timeout)


def fetch(path: str, timeout: float) -> Status:
    """Return the status of the daemon whose service socket is at `path`. TlsmgrError: none."""
    return read("\n".join(ask(path, StatusRequest(), timeout)))


def read(text: str) -> Status:
    """Return the status in a reply. ProtocolError: there is none."""
    try:
        return parse(json.loads(text))
    except (ValueError, Malformed) as error:
        raise ProtocolError(f"the answer is no status object: {error}") from None
