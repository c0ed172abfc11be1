"""messages - the datagrams between workers and the farm process: bytes from and to values.

A datagram starts with the serial of the worker that sent it, and an answer with that of the worker
it is for: what is meant for a worker that died is dropped by its successor in the same slot. Both
ends are ours, so a datagram that cannot be decoded is a defect (ValueError or struct.error).

``Writer`` fills datagrams up to DATAGRAM bytes, so that one system call carries many messages; the
largest has one value more. Pure; no lock. Nothing here is readable but `memcache:` values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tlsmgr.farm.codec import LARGEST_VALUE, MOST_KEYS

DATAGRAM = 32768  # bytes, after which a datagram is full
LONGEST_KEY = 1024
LARGEST_DATAGRAM = DATAGRAM + LARGEST_VALUE + MOST_KEYS * LONGEST_KEY + 256
NO_KEY = 255

_SERIAL = struct.Struct("=I")
_HEAD = struct.Struct("=BBQIBI")  # kind, lane, number, life, keys, bytes of the value
_LENGTH = struct.Struct("=H")
_ANSWER = struct.Struct("=QBI")  # number, which of the keys, bytes of the value
_LOOKUP, _STORE, _DELETE = range(3)


class Ask(NamedTuple):
    """A worker looks for the value of the first of these keys that has one."""

    lane: int
    number: int
    keys: tuple[bytes, ...]


class Store(NamedTuple):
    """A worker stores a value under a key, for ``life`` seconds."""

    lane: int
    key: bytes
    value: bytes
    life: int


class Remove(NamedTuple):
    """A worker deletes what is stored under these keys."""

    lane: int
    keys: tuple[bytes, ...]


class Answer(NamedTuple):
    """The answer to an Ask: which key had a value, NO_KEY for none, and the value."""

    number: int
    which: int
    value: bytes


Message = Ask | Store | Remove


class Datagram(NamedTuple):
    """A datagram, and how many messages in it store or delete something."""

    data: bytes
    writes: int


class Writer:
    """Datagrams for, or from, the worker with this serial."""

    def __init__(self, serial: int) -> None:
        self._head = _SERIAL.pack(serial)
        self._parts: list[bytes] = []
        self._size = 0
        self._writes = 0
        self._full: list[Datagram] = []

    def add(self, message: Message | Answer) -> None:
        """Append a message."""
        data = _encode_answer(message) if isinstance(message, Answer) else _encode(message)
        self._parts.append(data)
        self._size += len(data)
        self._writes += isinstance(message, Store | Remove)
        if self._size >= DATAGRAM:
            self._finish()

    def take(self) -> list[Datagram]:
        """Return the datagrams, and begin again."""
        self._finish()
        full, self._full = self._full, []
        return full

    def _finish(self) -> None:
        if self._parts:
            self._full.append(Datagram(self._head + b"".join(self._parts), self._writes))
            self._parts, self._size, self._writes = [], 0, 0


def serial_of(datagram: memoryview) -> int:
    """Return the serial of the worker that a datagram is of, or for."""
    (serial,) = _SERIAL.unpack_from(datagram)
    return int(serial)


def messages_in(datagram: memoryview) -> Iterator[Message]:
    """Yield the messages of a worker."""
    at = _SERIAL.size
    while at < len(datagram):
        kind, lane, number, life, count, size = _HEAD.unpack_from(datagram, at)
        at += _HEAD.size
        keys = []
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(datagram, at)
            at += _LENGTH.size
            keys.append(bytes(datagram[at : at + length]))
            at += length
        if kind == _LOOKUP:
            yield Ask(lane, number, tuple(keys))
        elif kind == _STORE:
            yield Store(lane, keys[0], bytes(datagram[at : at + size]), life)
        else:
            yield Remove(lane, tuple(keys))
        at += size


def answers_in(datagram: memoryview) -> Iterator[Answer]:
    """Yield the answers of the farm process."""
    at = _SERIAL.size
    while at < len(datagram):
        number, which, size = _ANSWER.unpack_from(datagram, at)
        at += _ANSWER.size
        yield Answer(number, which, bytes(datagram[at : at + size]))
        at += size


def _encode(message: Message) -> bytes:
    if isinstance(message, Ask):
        head = _HEAD.pack(_LOOKUP, message.lane, message.number, 0, len(message.keys), 0)
        return head + _keys(message.keys)
    if isinstance(message, Remove):
        return _HEAD.pack(_DELETE, message.lane, 0, 0, len(message.keys), 0) + _keys(message.keys)
    lane, key, value, life = message
    return _HEAD.pack(_STORE, lane, 0, life, 1, len(value)) + _keys((key,)) + value


def _keys(keys: Sequence[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(key)) + key for key in keys)


def _encode_answer(answer: Answer) -> bytes:
    return _ANSWER.pack(answer.number, answer.which, len(answer.value)) + answer.value
