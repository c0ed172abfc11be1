"""Datagrams between workers and the farm process."""

from __future__ import annotations

from tlsmgr.farm.codec import LARGEST_VALUE
from tlsmgr.farm.messages import (
    DATAGRAM,
    LARGEST_DATAGRAM,
    NO_KEY,
    Answer,
    Ask,
    Message,
    Remove,
    Store,
    Writer,
    answers_in,
    messages_in,
    serial_of,
)

MESSAGES: list[Message] = [
    Ask(0, 2**63, (b"key",)),
    Ask(3, 1, (b"k" * 50, b"", b"other")),
    Store(1, b"key", b"value\0" * 1000, 8640000),
    Store(0, b"key", b"", 0),
    Remove(2, (b"one", b"two")),
]


def written(messages: list[Message], serial: int = 7) -> list[memoryview]:
    writer = Writer(serial)
    for message in messages:
        writer.add(message)
    return [memoryview(datagram.data) for datagram in writer.take()]


def test_messages_come_out_as_they_went_in() -> None:
    (datagram,) = written(MESSAGES)
    assert list(messages_in(datagram)) == MESSAGES
    assert serial_of(datagram) == 7


def test_many_messages_fill_few_datagrams() -> None:
    many: list[Message] = [Store(0, b"k%d" % i, bytes(1500), 60) for i in range(1000)]
    datagrams = written(many)
    assert [message for datagram in datagrams for message in messages_in(datagram)] == many
    assert len(datagrams) <= 1000 * 1600 // DATAGRAM + 1
    assert all(len(datagram) <= LARGEST_DATAGRAM for datagram in datagrams)


def test_the_largest_datagram() -> None:
    small: Message = Store(0, b"k", bytes(DATAGRAM - 100), 60)
    (datagram,) = written([small, Store(0, b"k" * 1024, bytes(LARGEST_VALUE), 60)])
    assert DATAGRAM + LARGEST_VALUE < len(datagram) <= LARGEST_DATAGRAM


def test_writes_are_counted_for_each_datagram() -> None:
    writer = Writer(1)
    for message in MESSAGES:
        writer.add(message)
    assert [writes for _, writes in writer.take()] == [3]
    writer.add(MESSAGES[0])
    assert [writes for _, writes in writer.take()] == [0]


def test_answers() -> None:
    answers = [Answer(1, NO_KEY, b""), Answer(2**64 - 1, 2, bytes(100))]
    writer = Writer(2**32 - 1)
    for answer in answers:
        writer.add(answer)
    ((data, writes),) = writer.take()
    assert list(answers_in(memoryview(data))) == answers
    assert serial_of(memoryview(data)) == 2**32 - 1
    assert writes == 0
    assert writer.take() == []
