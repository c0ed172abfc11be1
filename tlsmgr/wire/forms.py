"""forms - what the requests of the tlsmgr protocol look like, and the types of their values.

Six requests, a row each in ``FORMS``: adding one is adding a class, a row and, for speed, a
case in ``read_whole``. The value types read what Postfix's attr_scan0.c and base64_code.c read, no
more and no less; they raise ValueError with the words of stock's warning. Nothing here is fatal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pybase64

ANNOUNCEMENT = b"protocol\0tlsmgr_protocol\0\0"
REQUEST_LIMIT = 2 * 1024 * 1024  # bytes of one request, terminator included
COMPLAINT_LIMIT = 100  # bytes of the peer's rubbish in one complaint (attr_scan0.c: "%.100s")

OK, FAILED, BAD_REQUEST = 0, -1, -2  # tls_mgr.h: TLS_MGR_STAT_OK, _ERR, _FAIL

NUL = b"\0"
FIRST_NAME = b"request"
WAKE_UP_NAME = b"W"  # master's trigger: TRIGGER_REQ_WAKEUP, then NUL


# ---------------------------------------------------------------------------------------- requests


class Seed(NamedTuple):
    """``size`` random bytes are asked for; a signed 32-bit number, not yet checked."""

    size: int


class Policy(NamedTuple):
    """May sessions of this cache type be cached, and for how long?"""

    cache_type: bytes


class Lookup(NamedTuple):
    """The session stored under ``cache_id``."""

    cache_type: bytes
    cache_id: bytes


class Update(NamedTuple):
    """Store ``session`` under ``cache_id``."""

    cache_type: bytes
    cache_id: bytes
    session: bytes

    def __repr__(self) -> str:
        return f"Update({self.cache_type!r}, {len(self.session)} bytes)"


class Delete(NamedTuple):
    """Forget the session stored under ``cache_id``."""

    cache_type: bytes
    cache_id: bytes


class TicketKey(NamedTuple):
    """The ticket key of this name, or with an empty name the one for new tickets."""

    keyname: bytes


Request = Seed | Policy | Lookup | Update | Delete | TicketKey


class Malformed(NamedTuple):
    """A list that is no request: the reply's shape (None: a bare status) and what to log.

    ``final`` says that the connection can't go on: there is no telling where the next list starts.
    """

    shape: type[Request] | None
    complaint: str
    final: bool = False


class InputWarning(NamedTuple):
    """Something odd that did not hinder a request: worth a warning, and no reply of its own."""

    text: str


class WakeUp(NamedTuple):
    """Master's wake-up: it wants the connection closed and no reply."""


class Paused(NamedTuple):
    """The reader took many fields and there are more: other clients come first."""


Event = Request | Malformed | InputWarning | WakeUp | Paused


# ------------------------------------------------------------------------------------ value types

_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)([0-9]+)\Z")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*\Z")


def parse_number(text: bytes) -> int:
    """A 32-bit signed number, as ``sscanf("%u%c")`` reads it (attr_scan0.c). Raises ValueError."""
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
    """Base64 as leniently as base64_code.c: nothing matters after the first ``=`` of a group.

    Raises ValueError for a length that is no multiple of four, a character outside the alphabet,
    or a ``=`` in the first half of a group.
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
    """Any bytes; NUL can't occur."""
    return text


class Form(NamedTuple):
    """What a request looks like: its class, and name and type of each attribute in order."""

    make: Callable[..., Request]
    names: tuple[bytes, ...]
    parsers: tuple[Callable[[bytes], Any], ...]

    @property
    def shape(self) -> type[Request]:
        """The request's class, which also names the shape of its reply."""
        assert isinstance(self.make, type)
        return self.make


_CACHE = (b"cache_type", parse_string), (b"cache_id", parse_string)


def _form(make: type[Request], *attributes: tuple[bytes, Callable[[bytes], Any]]) -> Form:
    return Form(make, tuple(a[0] for a in attributes), tuple(a[1] for a in attributes))


FORMS: Mapping[bytes, Form] = {
    b"seed": _form(Seed, (b"size", parse_number)),
    b"policy": _form(Policy, (b"cache_type", parse_string)),
    b"lookup": _form(Lookup, *_CACHE),
    b"update": _form(Update, *_CACHE, (b"session", parse_data)),
    b"delete": _form(Delete, *_CACHE),
    b"tktkey": _form(TicketKey, (b"keyname", parse_data)),
}
