"""metrics_address - where `tlsmgrctl metrics` listens: `unix:PATH` or `inet:HOST:PORT`

Written as in Postfix. A socket file that nobody listens on is replaced, and removed at the end;
anything else at that path is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tlsmgr.client import TlsmgrError

SOCKET_MODE = 0o666  # the directory says who may connect; there are no secrets in metrics
_INET = re.compile(r"inet:(\[[0-9a-fA-F:.]+\]|[^\[\]:]+):([0-9]{1,5})")


class Address(NamedTuple):
    """A path, or a host with its port; `text` is what was given."""

    text: str
    path: str = ""
    host: str = ""
    port: int = 0


def parse(text: str) -> Address:
    """Return the address. ValueError: it is none."""
    if text.startswith("unix:/"):
        return Address(text, path=text.removeprefix("unix:"))
    match = _INET.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"neither unix:/PATH nor inet:HOST:PORT: {text}")
    return Address(text, host=match[1].strip("[]"), port=int(match[2]))


@contextlib.contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """Yield a socket that listens there. TlsmgrError: there can be none."""
    try:
        listener = _unix(address.path) if address.path else _inet(address)
    except OSError as error:
        raise TlsmgrError(f"cannot listen on {address.text}: {error.strerror or error}") from None
    with listener:
        own = os.stat(address.path).st_ino if address.path else 0
        try:
            yield listener
        finally:
            if address.path:
                _remove(address.path, own)


def _inet(address: Address) -> socket.socket:
    family, kind, protocol, _, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _unix(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, SOCKET_MODE)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket file on which nobody listens; leave anything else, for bind() to refuse."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def _remove(path: str, own: int) -> None:
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == own:
            os.unlink(path)
