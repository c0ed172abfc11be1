"""reply - replies to bytes: one writer a request, chosen by the request's class.

Attribute names and their order are fixed (Postfix tls_mgr.h, tlsmgr.c); numbers travel as unsigned
32-bit decimals, so that -1 is 4294967295 (attr_print0.c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pybase64

from tlsmgr.wire.forms import NUL, OK, Delete, Lookup, Policy, Request, Seed, TicketKey, Update


def _status_alone(status: int) -> bytes:
    return b"status\0%d\0\0" % (status & 0xFFFFFFFF)


def _status_and_data(name: bytes) -> Callable[..., bytes]:
    found = b"status" + NUL + b"0" + NUL + name + NUL
    end = NUL + NUL

    def write(status: int, data: bytes = b"") -> bytes:
        if status == OK:
            return found + pybase64.b64encode(data) + end
        return b"status\0%d\0%b\0%b\0\0" % (status & 0xFFFFFFFF, name, pybase64.b64encode(data))

    return write


def _policy(status: int, cachable: bool = False, timeout: int = 0) -> bytes:
    return b"status\0%d\0cachable\0%d\0timeout\0%d\0\0" % (
        status & 0xFFFFFFFF,
        cachable,
        timeout,
    )


_WRITERS: Mapping[type[Request] | None, Callable[..., bytes]] = {
    Seed: _status_and_data(b"seed"),
    Policy: _policy,
    Lookup: _status_and_data(b"session"),
    Update: _status_alone,
    Delete: _status_alone,
    TicketKey: _status_and_data(b"keybuf"),
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
