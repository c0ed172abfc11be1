"""control_lines - the lines of the control socket: requests and replies, for both ends.

A client sends one request, a line of words: a command, and its arguments in their order, with one
space between words.

    status
    list TYPE [match=TEXT]
    drop TYPE match=TEXT
    drop TYPE all
    rotate

The server sends any number of lines, each a JSON object, then ``ok`` or ``error TEXT``, and closes
the connection. A reply without that last line is incomplete. An empty line means that the work goes
on and has nothing to show yet.

A cache id may have any bytes. In requests and replies, printable characters of ASCII stand for
themselves, but for space and per cent; ``%XX`` stands for any other byte. ``match=`` is compared
byte by byte with each part of an id. Nothing that is raised has more than 100 characters of a
peer's text. No I/O; no lock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

SUFFIX = "-control"  # of the path of the service socket
LINE_LIMIT = 8192  # bytes of a request: more than any cache id that a DNS name makes
QUOTED = 100  # characters of a peer's text in an error

OK, ERROR = "ok", "error"
_MATCH, _ALL = "match=", "all"
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_PLAIN = re.compile(rb"[!-$&-~]*")  # printable ASCII without space and per cent


class BadLine(ValueError):
    """This is no request; the text says why, for the peer."""


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """The status object."""


@dataclass(frozen=True, slots=True)
class ListRequest:
    """The sessions of a cache whose ids have this part; None: all."""

    cache_type: str
    match: bytes | None = None


@dataclass(frozen=True, slots=True)
class DropRequest:
    """Forget the sessions of a cache whose ids have this part; None: all."""

    cache_type: str
    match: bytes | None


@dataclass(frozen=True, slots=True)
class RotateRequest:
    """A new ticket key."""


ControlRequest = StatusRequest | ListRequest | DropRequest | RotateRequest


# Requests.


def parse(line: bytes) -> ControlRequest:
    """Return the request in a line, which has no newline any more. Raises BadLine."""
    try:
        command, *arguments = line.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise BadLine("the request has bytes that are not ASCII") from None
    reader = _READERS.get(command)
    if reader is None:
        known = ", ".join(_READERS)
        raise BadLine(f"unknown command: {quote(command)} (there are {known})")
    return reader(arguments)


def format_request(request: ControlRequest) -> str:
    """Return the line of a request, without newline; ``parse`` returns the same request."""
    if isinstance(request, StatusRequest):
        return "status"
    if isinstance(request, RotateRequest):
        return "rotate"
    is_list = isinstance(request, ListRequest)
    match = None if request.match is None else _MATCH + show_id(request.match)
    if match is None and not is_list:
        match = _ALL
    words = ["list" if is_list else "drop", request.cache_type, *([match] if match else [])]
    return " ".join(words)


def _read_status(arguments: Sequence[str]) -> ControlRequest:
    _expect(not arguments, "status")
    return StatusRequest()


def _read_list(arguments: Sequence[str]) -> ControlRequest:
    _expect(len(arguments) in (1, 2), "list TYPE [match=TEXT]")
    if len(arguments) == 1:
        return ListRequest(arguments[0])
    _expect(arguments[1].startswith(_MATCH), "list TYPE [match=TEXT]")
    return ListRequest(arguments[0], _read_match(arguments[1]))


def _read_drop(arguments: Sequence[str]) -> ControlRequest:
    form = "drop TYPE match=TEXT, or drop TYPE all"
    _expect(len(arguments) == 2, form)
    cache_type, which = arguments
    if which == _ALL:
        return DropRequest(cache_type, None)
    _expect(which.startswith(_MATCH) and which != _MATCH, form)  # no text would be all
    return DropRequest(cache_type, _read_match(which))


def _read_rotate(arguments: Sequence[str]) -> ControlRequest:
    _expect(not arguments, "rotate")
    return RotateRequest()


def _read_match(argument: str) -> bytes:
    return read_id(argument[len(_MATCH) :].encode())


def _expect(is_so: bool, form: str) -> None:
    if not is_so:
        raise BadLine(f"wrong arguments; the request is: {form}")


_READERS: Mapping[str, Callable[[Sequence[str]], ControlRequest]] = {
    "status": _read_status,
    "list": _read_list,
    "drop": _read_drop,
    "rotate": _read_rotate,
}


# Cache ids.


def show_id(cache_id: bytes) -> str:
    """Return an id as text of printable ASCII without spaces; ``read_id`` returns the same id."""
    if _PLAIN.fullmatch(cache_id):
        return cache_id.decode("ascii")
    return "".join(map(_SHOWN.__getitem__, cache_id))


def read_id(data: bytes) -> bytes:
    """Return an id, or a part of one, that was written so. Raises BadLine."""
    read = _ESCAPE.sub(lambda escape: bytes([int(escape[1], 16)]), data)
    if data.count(b"%") != len(_ESCAPE.findall(data)):
        raise BadLine("a per cent sign stands before two hexadecimal digits; it is itself %25")
    return read


_SHOWN = [chr(byte) if _PLAIN.fullmatch(bytes([byte])) else f"%{byte:02X}" for byte in range(256)]


# Replies.


def data_line(value: object) -> bytes:
    """Return a line with an object in JSON."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def error_line(text: str) -> bytes:
    """Return the last line of a reply to a request that failed."""
    return f"{ERROR} {text}\n".encode("ascii", "replace")


OK_LINE = f"{OK}\n".encode()


def quote(text: str) -> str:
    """Return a peer's text for an error: cut, and printable."""
    cut = text if len(text) <= QUOTED else f"{text[:QUOTED]}..."
    return cut if cut.isprintable() else ascii(cut)[1:-1]
