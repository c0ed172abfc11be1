"""requests - the six requests of the tlsmgr protocol, their attributes, and the value types.

``REQUEST_SPECS`` has one row for each request. To add a request, add a class, a row and, for speed,
a case in ``read_whole``. The value types accept exactly what Postfix's attr_scan0.c and
base64_code.c accept; they raise ValueError with the text of stock's warning. Nothing here is fatal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pybase64

ANNOUNCEMENT = b"protocol\0tlsmgr_protocol\0\0"
REQUEST_LIMIT = 2 * 1024 * 1024  # bytes of one request, with its terminator
COMPLAINT_LIMIT = 100  # bytes of the client in one complaint (attr_scan0.c: "%.100s")

OK, FAILED, BAD_REQUEST = 0, -1, -2  # tls_mgr.h: TLS_MGR_STAT_OK, _ERR, _FAIL

NUL = b"\0"
FIRST_NAME = b"request"
WAKE_UP_NAME = b"W"  # master's trigger: TRIGGER_REQ_WAKEUP, then NUL


# ---------------------------------------------------------------------------------------- requests


class Seed(NamedTuple):
    """Asks for ``size`` random bytes: a signed 32-bit number, not yet checked."""

    size: int


class Policy(NamedTuple):
    """Asks whether sessions of this cache type are cached, and for how long."""

    cache_type: bytes


class Lookup(NamedTuple):
    """Asks for the session with this ``cache_id``."""

    cache_type: bytes
    cache_id: bytes


class Update(NamedTuple):
    """Stores ``session`` under ``cache_id``."""

    cache_type: bytes
    cache_id: bytes
    session: bytes

    def __repr__(self) -> str:
        return f"Update({self.cache_type!r}, {len(self.session)} bytes)"


class Delete(NamedTuple):
    """Removes the session with this ``cache_id``."""

    cache_type: bytes
    cache_id: bytes


class TicketKey(NamedTuple):
    """Asks for the ticket key of this name; an empty name means the key for new tickets."""

    keyname: bytes


Request = Seed | Policy | Lookup | Update | Delete | TicketKey


class Malformed(NamedTuple):
    """A list that is no request: the shape of the reply (None: only a status) and the log line.

    ``final`` means that the connection must be closed, because the end of the list is unknown.
    """

    shape: type[Request] | None
    complaint: str
    final: bool = False


class InputWarning(NamedTuple):
    """A surplus attribute or an incomplete list: it gets a log line, but no reply of its own."""

    text: str


class WakeUp(NamedTuple):
    """The wake-up of master(8), which expects no reply and that the connection is closed."""


class Paused(NamedTuple):
    """The reader took many fields and there are more: other clients come first."""


Event = Request | Malformed | InputWarning | WakeUp | Paused


# ------------------------------------------------------------------------------------ value types

_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)([0-9]+)\Z")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*\Z")


def parse_number(text: bytes) -> int:
    """Return a signed 32-bit number, as ``sscanf("%u%c")`` reads it, or raise ValueError."""
    if text.isdigit() and len(text) < 10:  # what real clients send
        return int(text)
    match = _NUMBER.match(text)
    if match is None:
        raise ValueError("malformed numerical data")
    sign, digits = match.groups()
    magnitude = int(digits[-20:]) if len(digits.lstrip(b"0")) <= 20 else 1 << 64
    if magnitude >= 1 << 64:
        return -1  # strtoul() saturates to all ones
    value = (-magnitude if sign == b"-" else magnitude) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def parse_data(text: bytes) -> bytes:
    """Return decoded base64, as lenient as base64_code.c: it ends at the first ``=`` of a group.

    Raise ValueError for a length that is not a multiple of four, a character outside the alphabet
    before the first ``=``, or a ``=`` in the first half of a group.
    """
    try:
        return pybase64.b64decode(text, None, True)
    except ValueError:
        return _parse_lenient_data(text)


def _parse_lenient_data(text: bytes) -> bytes:
    head, padding, _ = text.partition(b"=")
    if len(text) % 4 or (padding and len(head) % 4 < 2) or not _BASE64.match(head):
        raise ValueError("malformed base64 data")
    return pybase64.b64decode(head + b"=" * (-len(head) % 4))


def parse_string(text: bytes) -> bytes:
    """Return the bytes as they are; a NUL cannot occur in them."""
    return text


class RequestSpec(NamedTuple):
    """A request's class, and the name and the parser of each of its attributes, in order."""

    make: Callable[..., Request]
    names: tuple[bytes, ...]
    parsers: tuple[Callable[[bytes], Any], ...]

    @property
    def shape(self) -> type[Request]:
        """The class of the request, which stands for the shape of its reply too."""
        assert isinstance(self.make, type)
        return self.make


_CACHE = (b"cache_type", parse_string), (b"cache_id", parse_string)


def _spec(make: type[Request], *attributes: tuple[bytes, Callable[[bytes], Any]]) -> RequestSpec:
    return RequestSpec(make, tuple(a[0] for a in attributes), tuple(a[1] for a in attributes))


REQUEST_SPECS: Mapping[bytes, RequestSpec] = {
    b"seed": _spec(Seed, (b"size", parse_number)),
    b"policy": _spec(Policy, (b"cache_type", parse_string)),
    b"lookup": _spec(Lookup, *_CACHE),
    b"update": _spec(Update, *_CACHE, (b"session", parse_data)),
    b"delete": _spec(Delete, *_CACHE),
    b"tktkey": _spec(TicketKey, (b"keyname", parse_data)),
}
