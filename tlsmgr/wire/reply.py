"""reply - replies to bytes: one writer for each request, chosen by the class of the request.

Attribute names and their order are fixed (Postfix tls_mgr.h, tlsmgr.c); numbers travel as unsigned
32-bit decimals, so that -1 is 4294967295 (attr_print0.c).
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Mapping

import pybase64

from tlsmgr.wire.requests import Delete, Lookup, Policy, Request, Seed, TicketKey, Update

_UNSIGNED = 0xFFFFFFFF


def _status_alone(status: int) -> bytes:
    return b"status\0%d\0\0" % (status & _UNSIGNED)


def _seed(status: int, data: bytes = b"") -> bytes:
    return b"status\0%d\0seed\0%b\0\0" % (status & _UNSIGNED, pybase64.b64encode(data))


def _session(status: int, data: bytes = b"") -> bytes:
    return b"status\0%d\0session\0%b\0\0" % (status & _UNSIGNED, pybase64.b64encode(data))


def _key(status: int, data: bytes = b"") -> bytes:
    return b"status\0%d\0keybuf\0%b\0\0" % (status & _UNSIGNED, pybase64.b64encode(data))


def _policy(status: int, cachable: bool = False, timeout: int = 0) -> bytes:
    return b"status\0%d\0cachable\0%d\0timeout\0%d\0\0" % (
        status & _UNSIGNED,
        cachable,
        timeout,
    )


_WRITERS: Mapping[type[Request] | None, Callable[..., bytes]] = {
    Seed: _seed,
    Policy: _policy,
    Lookup: _session,
    Update: _status_alone,
    Delete: _status_alone,
    TicketKey: _key,
    None: _status_alone,
}


def write_reply(shape: type[Request] | None, status: int, *values: bytes | int) -> bytes:
    """Return the reply to a request of class ``shape`` (None: the name of the request is unknown).

    ``status`` is OK, FAILED or BAD_REQUEST. ``values`` are the attributes behind the status: seed,
    session or keybuf (bytes), or cachable and timeout (ints). Without values, data is empty and
    numbers are 0. Every reply other than OK must be without: stock's failed replies carry values of
    an earlier reply, and so give one client the ticket key of another.
    """
    return _WRITERS[shape](status, *values)


# Faster writers of the two replies that make up nearly all of the traffic.


def write_seed(data: bytes) -> bytes:
    """Return the same as ``write_reply(Seed, OK, data)``; for few bytes binascii is faster."""
    return b"status\0000\0seed\0%b\0\0" % b2a_base64(data, newline=False)


def write_session(data: bytes) -> bytes:
    """Return the same as ``write_reply(Lookup, OK, data)``."""
    return b"status\0000\0session\0%b\0\0" % pybase64.b64encode(data)
