"""reply - replies to bytes: one writer a request, chosen by the request's class.

Attribute names and their order are fixed (Postfix tls_mgr.h, tlsmgr.c); numbers travel as unsigned
32-bit decimals, so that -1 is 4294967295 (attr_print0.c).
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Mapping

import pybase64

from tlsmgr.wire.forms import Delete, Lookup, Policy, Request, Seed, TicketKey, Update

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
    """The reply list for a request of class ``shape`` (None: the request's name was not known).

    ``status`` is OK, FAILED or BAD_REQUEST; ``values`` are what the request's row in the protocol
    asks for: seed, session, keybuf (bytes), or cachable and timeout (ints). Without values data is
    empty and numbers are 0, which is what every reply but OK must carry: a stale value in a failed
    reply is how stock gave one client another's ticket key.
    """
    return _WRITERS[shape](status, *values)


# The two replies that make up nearly all of the traffic, at half the price.


def write_seed(data: bytes) -> bytes:
    """What ``write_reply(Seed, OK, data)`` returns; for so few bytes binascii is the faster one."""
    return b"status\0000\0seed\0%b\0\0" % b2a_base64(data, newline=False)


def write_session(data: bytes) -> bytes:
    """What ``write_reply(Lookup, OK, data)`` returns."""
    return b"status\0000\0session\0%b\0\0" % pybase64.b64encode(data)
