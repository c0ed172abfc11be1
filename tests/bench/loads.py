"""loads - the loads: their requests, the replies that they must get, and plan files for them.

Ids and sizes are those of outbound mail: cache ids of 120 bytes, sessions of 1,200, seeds of 32
(Postfix smtp_key.c, tls_daemon_random_bytes). Ids and sessions are derived from a number, so that
every process makes the same ones and a lookup can be compared with what was stored.

A plan is the file that generator.c reads: prepared requests with the replies due to them. It is in
native byte order, of 32-bit numbers after the magic:

    header    magic (8 bytes), steps, entries, per_connection, once, longest_reply, unused
    steps     first, count, fresh, unused: the requests that a client makes in turn, repeatedly;
              each one of `count` entries from `first` on. `fresh`: no reply may repeat the last
    entries   offset and length, in the texts, of the two pieces of the request and of the two
              pieces with which the reply must begin; length of the whole reply
    texts     to the end of the file

`once`: every entry is requested once, in order, by the next free client. A client takes the same
entry, counted from `first`, in all of its steps: one key for a lookup and the update after it.
"""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

ID_BYTES = 120
SESSION_BYTES = 1200
SEED_BYTES = 32
KEYS = 10_000  # sessions in the cache by default, except in growth
CACHE_TYPE = b"smtp"
DISTINCT_SESSIONS = 32  # few, so that they stay in the generator's CPU cache

SEED_LENGTH = 4 * -(-SEED_BYTES // 3)  # characters of base64
SESSION_LENGTH = 4 * -(-SESSION_BYTES // 3)


class Load(NamedTuple):
    """The requests that each client repeats in this order, and when it reconnects."""

    name: str
    requests: tuple[str, ...]
    per_connection: int  # requests; 0: it stays connected
    purpose: str


DELIVERY = ("lookup", "seed", "update")
LOADS: Mapping[str, Load] = {
    load.name: load
    for load in (
        Load("seed", ("seed",), 0, "random bytes, which every TLS connection needs"),
        Load("lookup", ("lookup",), 0, "sessions that are in the cache"),
        Load("update", ("update",), 0, "sessions that replace others"),
        Load("mta", DELIVERY, 0, "lookup, seed, update: an outbound TLS 1.3 delivery"),
        Load("mta-churn", DELIVERY, 3, "the same, with a new connection for each delivery"),
        Load("seed-churn", ("seed",), 1, "connect, read the announcement, one seed, close"),
    )
}


class Exchange(NamedTuple):
    """A prepared request and the reply due to it, each in two pieces.

    The reply begins with `want` and `want_tail` and has `reply_length` bytes.
    """

    head: bytes
    tail: bytes
    want: bytes
    want_tail: bytes
    reply_length: int


class Kind(NamedTuple):
    """A kind of request. `fresh`: each reply must differ from the one before."""

    keyed: bool
    fresh: bool


KINDS: Mapping[str, Kind] = {
    "seed": Kind(keyed=False, fresh=True),
    "lookup": Kind(keyed=True, fresh=False),
    "update": Kind(keyed=True, fresh=False),
}

_DONE = b"status\x000\x00"
_END = b"\0"


def exchange(kind: str, number: int) -> Exchange:
    """Return the request of this kind for the key with this number, and its reply."""
    if kind == "seed":
        want = _DONE + b"seed\0"
        request = b"request\0seed\0size\0%d\0\0" % SEED_BYTES
        return Exchange(request, b"", want, b"", len(want) + SEED_LENGTH + 2)
    entry = b"request\0%b\0cache_type\0%b\0cache_id\0%b\0" % (
        kind.encode(),
        CACHE_TYPE,
        cache_id(number),
    )
    session = _session_attribute(number % DISTINCT_SESSIONS)
    if kind == "lookup":
        return Exchange(entry + _END, b"", _DONE, session, len(_DONE + session))
    return Exchange(entry, session, _DONE + _END, b"", len(_DONE + _END))


def cache_id(number: int) -> bytes:
    """Return a cache id of 120 bytes in the format of smtp(8)."""
    fingerprint = sha256(b"%d" % number).hexdigest().upper()
    rest = f".mx.example.com&192.0.2.25&&&{fingerprint}"
    return f"smtp&{number:x>{ID_BYTES - len(rest) - 5}}{rest}".encode()


@cache
def session(number: int) -> bytes:
    """Return the session stored under ids with this number modulo DISTINCT_SESSIONS."""
    return random.Random(number).randbytes(SESSION_BYTES)


@cache
def _session_attribute(number: int) -> bytes:
    return b"session\0%b\0\0" % base64.b64encode(session(number))


# Plan files.

MAGIC = b"tlsbench"
HEADER = struct.Struct("=8s6I")
STEP = struct.Struct("=4I")
ENTRY = struct.Struct("=9I")


class Step(NamedTuple):
    """A kind of request in a plan: its exchanges, and whether replies must differ."""

    exchanges: Sequence[Exchange]
    fresh: bool


def write_load_plan(path: Path, load: Load, keys: Sequence[int], lenient: bool = False) -> None:
    """Write the plan of a load on these keys. `lenient`: replies need only look right."""
    steps = [_step(kind, keys, lenient) for kind in load.requests]
    _write_plan(path, steps, load.per_connection, once=False)


def write_filling_plan(path: Path, keys: Sequence[int]) -> None:
    """Write the plan that stores the session of each of these keys once."""
    _write_plan(path, [_step("update", keys, lenient=False)], 0, once=True)


def _step(kind: str, keys: Sequence[int], lenient: bool) -> Step:
    numbers = keys if KINDS[kind].keyed else [0]
    exchanges = [exchange(kind, number) for number in numbers]
    if lenient:
        exchanges = [each._replace(want_tail=b"") for each in exchanges]
    return Step(exchanges, KINDS[kind].fresh and not lenient)


def _write_plan(path: Path, plan: Iterable[Step], per_connection: int, once: bool) -> None:
    texts, steps, entries = _Texts(), bytearray(), bytearray()
    longest = count = 0
    for step in plan:
        steps += STEP.pack(count, len(step.exchanges), step.fresh, 0)
        count += len(step.exchanges)
        for each in step.exchanges:
            places = [number for text in each[:4] for number in texts.place(text)]
            entries += ENTRY.pack(*places, each.reply_length)
            longest = max(longest, each.reply_length)
    numbers = (len(steps) // STEP.size, count, per_connection, once, longest, 0)
    path.write_bytes(HEADER.pack(MAGIC, *numbers) + steps + entries + texts.content)


class _Texts:
    """The texts of a plan, each stored once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[bytes, tuple[int, int]] = {}

    def place(self, text: bytes) -> tuple[int, int]:
        """Return offset and length of the text, which is added if it is new."""
        place = self._places.get(text)
        if place is None:
            place = self._places[text] = len(self.content), len(text)
            self.content += text
        return place
