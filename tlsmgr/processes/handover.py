"""handover - the message in which a daemon leaves keys and counts to its successor.

It is a memory file without a name, sealed so that nobody can change it: a header (magic, version
of the layout, length) and JSON. The file ends with its last descriptor, so nothing of it is ever
on a disk. ``parking`` passes the descriptor on, ``succession`` fills and uses the message.

The reader trusts nothing: all seals, magic, layout, length, the form of each value, and the time.
What is odd is a BadMessage with a reason, another layout an OtherLayout. A message holds secrets:
its ``repr`` shows none, nor does a reason. Run by parent and workers; nothing here is fatal.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from fcntl import F_ADD_SEALS, F_GET_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE
from fcntl import fcntl as control
from typing import Any, NamedTuple

from tlsmgr.sessions.file import MarkValues
from tlsmgr.sessions.seal import KEY_BYTES as SEAL_KEY_BYTES
from tlsmgr.sessions.shared import CacheState, OlderKey
from tlsmgr.tickets import KEY_BYTES as TICKET_KEY_BYTES

LAYOUT = 1
LONGEST = 1 << 20  # bytes
LONGEST_WAIT = 3600  # seconds that a message may be on its way
CLOCK_SLACK = 60  # seconds that it may seem to come from the future
LARGEST_COUNT, LARGEST_INODE = 1 << 60, (1 << 64) - 1

_MAGIC = b"tlsmgr-handover\n"
_HEAD = struct.Struct("=16sII")  # magic, layout, length of what follows
_SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class BadMessage(Exception):
    """The message can't be used; the text says why."""


class OtherLayout(BadMessage):
    """It was written by another version of this program."""


class CacheMessage(NamedTuple):
    """What goes over of one cache: its database and size limit in the configuration, its state."""

    table: str
    size_limit: int
    state: CacheState


@dataclass(frozen=True)
class Message:
    """What goes over. ``ticket_keys`` is both keys, or b"" for none; ``parent`` is a pid."""

    parent: int
    time: int  # seconds since 1970
    ticket_keys: bytes = field(repr=False)
    statistics: Mapping[str, int]
    caches: Mapping[str, CacheMessage]  # by cache type
    policy: Mapping[str, str]  # see config.policy_digest


def write(message: Message) -> int:
    """Return the descriptor of a sealed memory file with the message. Raises OSError."""
    content = json.dumps(
        {
            "parent": message.parent,
            "time": message.time,
            "ticket_keys": message.ticket_keys.hex(),
            "statistics": dict(message.statistics),
            "caches": {name: _values(cache) for name, cache in message.caches.items()},
            "policy": dict(message.policy),
        }
    ).encode()
    return seal(_HEAD.pack(_MAGIC, LAYOUT, len(content)) + content)


def seal(data: bytes) -> int:
    """Return the descriptor of a sealed memory file with this content. Raises OSError."""
    memory = os.memfd_create("tlsmgr-handover", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        written = os.write(memory, data)
        if written != len(data):
            raise OSError(0, "short write")
        control(memory, F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def read(descriptor: int, now: int) -> Message:
    """Return the message in that file, for a reader at ``now``. Raises BadMessage."""
    try:
        if control(descriptor, F_GET_SEALS) & _SEALS != _SEALS:
            raise BadMessage("it is not sealed")
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, size, 0) if size <= LONGEST else b""
    except OSError:
        raise BadMessage("it is no memory file") from None
    message = unpack(data)
    if not now - LONGEST_WAIT <= message.time <= now + CLOCK_SLACK:
        raise BadMessage("its time is implausible")
    return message


def unpack(data: bytes) -> Message:
    """Return the message with this content. Raises BadMessage."""
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise BadMessage("it is no message of this program")
    _, layout, length = _HEAD.unpack_from(data)
    if layout != LAYOUT:
        raise OtherLayout(f"its layout is {layout}, not {LAYOUT}")
    if length != len(data) - _HEAD.size:
        raise BadMessage("its length is wrong")
    try:
        return _message(json.loads(data[_HEAD.size :]))
    except _MALFORMED:
        raise BadMessage("its content is malformed") from None


def _values(cache: CacheMessage) -> list[Any]:
    state = cache.state
    older = [(key.tag, key.until, key.key.hex()) for key in state.older]
    return [
        cache.table, cache.size_limit, state.encrypted, state.digest_key.hex(), older, state.mark
    ]  # fmt: skip


def _message(content: Any) -> Message:
    return Message(
        parent=_integer(content["parent"]),
        time=_integer(content["time"]),
        ticket_keys=_bytes(content["ticket_keys"], 0, 2 * TICKET_KEY_BYTES),
        statistics={name: _integer(count) for name, count in content["statistics"].items()},
        caches={name: _cache(*values) for name, values in content["caches"].items()},
        policy={name: _text(digest) for name, digest in content["policy"].items()},
    )


def _cache(
    table: Any, size_limit: Any, encrypted: Any, digest_key: Any, older: Any, mark: Any
) -> CacheMessage:
    if type(encrypted) is not bool:
        raise ValueError
    state = CacheState(
        encrypted,
        _bytes(digest_key, SEAL_KEY_BYTES),
        tuple(_older(*values) for values in older),
        MarkValues(*(_integer(value, LARGEST_INODE) for value in mark)),
    )
    return CacheMessage(_text(table), _integer(size_limit), state)


def _older(tag: Any, until: Any, key: Any) -> OlderKey:
    return OlderKey(_integer(tag, 255), _integer(until), _bytes(key, SEAL_KEY_BYTES))


def _integer(value: Any, largest: int = LARGEST_COUNT) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError
    return value


def _bytes(text: Any, *lengths: int) -> bytes:
    value = bytes.fromhex(text)
    if len(value) not in lengths:
        raise ValueError
    return value
