"""reader_events - the events that a RequestReader returns for bytes in segments."""

from __future__ import annotations

from collections.abc import Iterable

from tlsmgr.wire import Event, RequestReader


def events_of(segments: Iterable[bytes]) -> list[Event]:
    """Return the events of a new reader for these segments."""
    reader = RequestReader()
    events: list[Event] = []
    for segment in segments:
        reader.receive(segment)
        while (event := reader.next_event()) is not None:
            events.append(event)
    return events


def pieces(data: bytes, size: int) -> list[bytes]:
    """Return the data in segments of `size` bytes."""
    return [data[start : start + size] for start in range(0, len(data), size)]
