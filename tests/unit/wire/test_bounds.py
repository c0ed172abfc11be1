"""The bounds of a reader: a request's size, its memory, and the quotation in a complaint."""

from __future__ import annotations

import tracemalloc

import pytest
from support import raw_client
from support.reader_events import events_of, pieces

from tlsmgr.wire import REQUEST_LIMIT, InputWarning, Malformed, RequestReader, Update

SEGMENT = 32768


def update_of(size: int) -> bytes:
    """Return an update request of ``size`` bytes."""
    frame = raw_client.update(b"smtp", b"", b"")
    cache_id = b"i" * ((size - len(frame)) % 4)
    frame = raw_client.update(b"smtp", cache_id, b"")
    return frame[:-2] + b"A" * (size - len(frame)) + b"\0\0"


def test_the_limit_of_a_request_is_that_of_the_manual_page() -> None:
    assert REQUEST_LIMIT == 2 << 20


@pytest.mark.parametrize("size", range(REQUEST_LIMIT - 4, REQUEST_LIMIT + 5))
def test_the_limit_of_a_request_is_exact(size: int) -> None:
    data = update_of(size)
    assert len(data) == size
    events = events_of(pieces(data, SEGMENT))
    if size <= REQUEST_LIMIT:
        assert [type(event) for event in events] == [Update]
    else:
        complaint = f"request from tlsmgr socket over {REQUEST_LIMIT} bytes"
        assert events == [Malformed(Update, complaint, final=True)]


@pytest.mark.parametrize("where", [b"", b"request\0update\0cache_type\0", b"request\0", b"re"])
def test_an_endless_field_is_refused_in_time(where: bytes) -> None:
    reader = RequestReader()
    reader.receive(where)
    fed = len(where)
    while (event := reader.next_event()) is None:
        assert fed <= REQUEST_LIMIT
        reader.receive(b"a" * SEGMENT)
        fed += SEGMENT
    assert isinstance(event, Malformed)
    assert event.final
    assert REQUEST_LIMIT < fed <= REQUEST_LIMIT + SEGMENT


def feed_without_end(head: bytes, segment: bytes) -> int:
    """Feed a reader 2 MiB; returns the most memory that took, in bytes."""
    reader = RequestReader()
    reader.receive(head)
    while reader.next_event() is not None:
        pass
    tracemalloc.start()
    try:
        for _ in range((2 << 20) // SEGMENT):
            reader.receive(segment)
            while reader.next_event() is not None:
                pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_junk_that_is_skipped_is_not_held() -> None:
    assert feed_without_end(b"request\0seed\0size\0abc\0", b"j" * SEGMENT) < 8 * SEGMENT
    assert feed_without_end(b"request\0frob\0", b"some junk\0" * (SEGMENT // 10)) < 8 * SEGMENT
    trailing = b"request\0policy\0cache_type\0smtp\0extra\0"
    assert feed_without_end(trailing, b"j" * SEGMENT) < 8 * SEGMENT


def test_a_complaint_quotes_no_secret() -> None:
    """Of a session or the name of a key it shows the length only."""
    for head in (b"update\0cache_type\0smtp\0cache_id\0x\0session\0", b"tktkey\0keyname\0"):
        event = events_of([b"request\0" + head + b"c2VjcmV0*\0\0"])[0]
        assert isinstance(event, Malformed)
        assert event.complaint.endswith("value: (9 bytes)")


def test_a_complaint_quotes_a_hundred_bytes_at_most() -> None:
    long = b"\xff" * 10000
    for data in (
        long + b"\0x\0\0",
        b"request\0" + long + b"\0\0",
        b"request\0seed\0" + long + b"\0x\0\0",
        b"request\0seed\0size\0" + long + b"\0\0",
        b"request\0seed\0size\x004\0" + long + b"\0x\0\0",
    ):
        event = events_of([data])[0]
        assert isinstance(event, Malformed | InputWarning)
        text = event.complaint if isinstance(event, Malformed) else event.text
        assert text.count("\udcff") == 100


def test_no_session_in_a_repr() -> None:
    assert "secret" not in repr(Update(b"smtp", b"id", b"secret session"))
