"""reader - bytes to requests: ``read_whole`` for nearly every segment, ``RequestReader`` for all.

The two agree: a request that ``read_whole`` returns is the only event that ``RequestReader`` has
for the same bytes. The state of ``RequestReader`` is three answers, which it checks in this order:
whether it skips the rest of a refused list (``_skipping``), whether the current field is a name or
a value (``_at_value``), and which name must come next (``_wanted``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pybase64

from tlsmgr.wire.requests import (
    COMPLAINT_LIMIT,
    FIRST_NAME,
    NUL,
    REQUEST_LIMIT,
    REQUEST_SPECS,
    WAKE_UP_NAME,
    Delete,
    Event,
    InputWarning,
    Lookup,
    Malformed,
    Paused,
    Policy,
    Request,
    RequestSpec,
    Seed,
    TicketKey,
    Update,
    WakeUp,
    parse_data,
    parse_number,
)

# The good seed requests are few enough for a table of all of them.
_SEEDS: Mapping[bytes, Seed] = {
    b"request\0seed\0size\0%d\0\0" % size: Seed(size) for size in range(1, 256)
}
_LONGEST_SEED = max(map(len, _SEEDS))
_make = tuple.__new__  # to call the class of a NamedTuple takes half as long again
FIELDS_AT_ONCE = 64  # fields taken in one call; a request has nine at most
_SPLITS = 7  # at most, so that the session, which is long, is not searched for a NUL


def read_whole(segment: bytes) -> Request | None:
    """Return the request if ``segment`` is exactly one, well-formed; otherwise None.

    None means that RequestReader must read the segment. A good request may be among those.
    """
    if len(segment) <= _LONGEST_SEED and segment in _SEEDS:
        return _SEEDS[segment]
    try:
        return _match(segment.split(NUL, _SPLITS))
    except ValueError:
        return None


def _match(fields: list[bytes]) -> Request | None:
    """Return the request; the last two fields are empty, behind the NULs of value and list."""
    match fields:
        case [b"request", b"lookup", b"cache_type", kind, b"cache_id", name, b"", b""]:
            return _make(Lookup, (kind, name))
        case [b"request", b"update", b"cache_type", kind, b"cache_id", name, b"session", rest]:
            return _make(Update, (kind, name, _last_data(rest)))
        case [b"request", b"delete", b"cache_type", kind, b"cache_id", name, b"", b""]:
            return Delete(kind, name)
        case [b"request", b"policy", b"cache_type", kind, b"", b""]:
            return Policy(kind)
        case [b"request", b"seed", b"size", size, b"", b""]:
            return Seed(parse_number(size))
        case [b"request", b"tktkey", b"keyname", name, b"", b""]:
            return TicketKey(parse_data(name))
    return None


def _last_data(rest: bytes) -> bytes:
    """Return the data of strict base64, which has no NUL, before the ends of value and list."""
    if not rest.endswith(b"\0\0"):
        raise ValueError("not the end")
    return pybase64.b64decode(rest[:-2], None, True)


class RequestReader:
    """Turns the bytes of one connection into events. It makes no system call.

    ``source`` is the name of the connection in complaints: "tlsmgr socket".
    """

    __slots__ = (
        "_at_value",
        "_buffer",
        "_field",
        "_held",
        "_scan",
        "_size",
        "_skipping",
        "_source",
        "_spec",
        "_values",
    )  # fmt: skip

    def __init__(self, source: str = "tlsmgr socket") -> None:
        self._source = source
        self._buffer = bytearray()
        self._field = 0  # where the current field starts
        self._scan = 0  # no NUL between there and here
        self._held: Request | None = None  # a request whose warning was returned first
        self._start_list()

    def _start_list(self) -> None:
        self._size = 0  # bytes of this list before the current field
        self._spec: RequestSpec | None = None
        self._values: list[Any] = []
        self._at_value = False
        self._skipping = False

    @property
    def _is_fresh(self) -> bool:
        """Whether no field of the current list has been read."""
        return self._spec is None and not self._at_value and not self._skipping

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, so that the next segment starts a request."""
        return not self._buffer and self._is_fresh

    def receive(self, segment: bytes) -> None:
        """Append bytes that were read; then ``next_event`` must be called until it returns None."""
        if segment.startswith(FIRST_NAME + NUL) and self._may_start_list:
            self._buffer.clear()
            self._field = self._scan = 0
            self._start_list()
        self._buffer += segment

    @property
    def _may_start_list(self) -> bool:
        """Whether the next segment may start a new list, though the last one has not ended.

        It may behind stray NULs, and behind a whole field of a refused list; in the middle of a
        field, the segment is the rest of that field.
        """
        if self._skipping:
            return self._field == len(self._buffer)
        return self._is_fresh and not self._buffer.strip(NUL)

    @property
    def size(self) -> int:
        """Return the bytes of the current list so far; no more than these are held."""
        return self._size + len(self._buffer) - self._field

    def next_event(self) -> Event | None:
        """Return the next event, or None when more bytes are needed.

        Paused after FIELDS_AT_ONCE fields: there may be more; other clients come first.
        """
        if self._held is not None:
            held, self._held = self._held, None
            return held
        fields = 0
        while (end := self._buffer.find(0, self._scan)) >= 0:
            if fields == FIELDS_AT_ONCE:
                return Paused()
            fields += 1
            if end == self._field and self._is_fresh and len(self._buffer) - end <= 2:
                break  # stock has no answer to an empty list of less than three bytes
            event = self._take_field(end)
            if event is not None:
                return event
        else:
            self._scan = len(self._buffer)
        self._drop_what_was_read()
        return self._refuse_if_oversized()

    def end_of_input(self) -> Malformed | InputWarning | None:
        """Return the event at the end of the input; None if no request is incomplete.

        An incomplete request whose name is known gets a reply, another only a log line.
        """
        held = bytes(self._buffer[self._field :])
        if self._skipping or (self._is_fresh and held.strip(NUL) in (b"", WAKE_UP_NAME)):
            return None
        problem = "unexpected end-of-input from" if held else "premature end-of-input on"
        part = "value" if self._at_value else "name"
        text = f"{problem} {self._source} while reading input attribute {part}"
        return InputWarning(text) if self._spec is None else self._refuse(text)

    # Field by field.

    def _take_field(self, end: int) -> Event | None:
        field = bytes(self._buffer[self._field : end])
        self._size += len(field) + 1
        self._field = self._scan = end + 1
        if self._size > REQUEST_LIMIT and not self._skipping:
            return self._refuse_if_oversized()
        return self._take_value(field) if self._at_value else self._take_name(field)

    def _take_name(self, name: bytes) -> Event | None:
        if self._skipping:
            self._at_value = name != b""
            if not name:
                self._start_list()
            return None
        wanted = self._wanted()
        if name and name == wanted:
            self._at_value = True
            return None
        if name:
            return self._take_unexpected(name, wanted)
        return self._finish() if not wanted else self._end_early(wanted)

    def _wanted(self) -> bytes:
        """Return the name that must come next; empty for the list terminator."""
        if self._spec is None:
            return FIRST_NAME
        names = self._spec.names
        return names[len(self._values)] if len(self._values) < len(names) else b""

    def _finish(self) -> Request:
        assert self._spec is not None
        request = self._spec.make(*self._values)
        self._start_list()
        return request

    def _end_early(self, wanted: bytes) -> Malformed:
        refusal = self._refuse(f"missing attribute {_text(wanted)} in input from {self._source}")
        if wanted != FIRST_NAME:  # what follows an empty list is skipped, as in stock
            self._start_list()
        return refusal

    def _take_unexpected(self, name: bytes, wanted: bytes) -> Event:
        if self._is_fresh and name == WAKE_UP_NAME and self._field == len(self._buffer):
            return WakeUp()
        complaint = (
            f"unexpected attribute {_text(name)} from {self._source}"
            f" (expecting: {_text(wanted) or '(list terminator)'})"
        )
        if wanted:
            refusal = self._refuse(complaint)
            self._at_value = True
            return refusal
        self._held = self._finish()
        self._skipping = self._at_value = True
        return InputWarning(complaint)

    def _take_value(self, value: bytes) -> Event | None:
        self._at_value = False
        if self._skipping:
            return None
        if self._spec is None:
            self._spec = REQUEST_SPECS.get(value)
            if self._spec is None:
                return self._refuse(f'unknown request "{_text(value)}" from {self._source}')
            return None
        parser = self._spec.parsers[len(self._values)]
        try:
            self._values.append(parser(value))
        except ValueError as problem:
            shown = f"({len(value)} bytes)" if parser is parse_data else _text(value)
            return self._refuse(
                f"{problem} from {self._source} while reading input attribute value: {shown}"
            )
        return None

    # Refusing.

    def _refuse(self, complaint: str, final: bool = False) -> Malformed:
        shape = self._spec.shape if self._spec is not None else None
        self._skipping = True
        return Malformed(shape, complaint, final)

    def _refuse_if_oversized(self) -> Malformed | None:
        if self._skipping or self.size <= REQUEST_LIMIT:
            return None
        return self._refuse(f"request from {self._source} over {REQUEST_LIMIT} bytes", final=True)

    def _drop_what_was_read(self) -> None:
        del self._buffer[: self._field]
        if self._skipping:
            del self._buffer[1:]  # only whether the field is empty matters
        self._scan = max(0, min(self._scan - self._field, len(self._buffer)))
        self._field = 0


def _text(value: bytes) -> str:
    return value[:COMPLAINT_LIMIT].decode("utf-8", "surrogateescape")
