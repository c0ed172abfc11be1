"""plan - the file that tells a generator what to ask: prepared requests with the replies due.

Native byte order, 32-bit numbers but for the magic:

    header    magic (8 bytes), steps, entries, per_connection, once, longest_reply, unused
    steps     first, count, fresh, unused: what a client asks in turn, over and over; each time one
              of ``count`` entries from ``first`` on. ``fresh``: the reply must differ from the last
    entries   offset and length, within the texts, of the request's two pieces and of the two
              pieces with which the reply must begin; length of the whole reply
    texts     to the end of the file

``once``: every entry is asked once, in order, by whichever client is free. A client that chose an
entry for its first step takes the same one, counted from ``first``, for the others: one key.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.loads import KINDS, Exchange, Load, exchange

MAGIC = b"tlsbench"
HEADER = struct.Struct("=8s6I")
STEP = struct.Struct("=4I")
ENTRY = struct.Struct("=9I")


class Step(NamedTuple):
    """A kind of request: its exchanges, and whether replies must differ."""

    exchanges: Sequence[Exchange]
    fresh: bool


class Plan(NamedTuple):
    """What is in the file."""

    steps: Sequence[Step]
    per_connection: int = 0
    once: bool = False


def for_load(load: Load, keys: Sequence[int], lenient: bool = False) -> Plan:
    """The plan of a load on these keys. Lenient: canned replies will do, if they look right."""
    return Plan([_step(kind, keys, lenient) for kind in load.requests], load.per_connection)


def for_filling(keys: Sequence[int]) -> Plan:
    """The plan that stores the sessions of these keys."""
    return Plan([_step("update", keys, lenient=False)], once=True)


def _step(kind: str, keys: Sequence[int], lenient: bool) -> Step:
    numbers = keys if KINDS[kind].keyed else [0]
    exchanges = [exchange(kind, number) for number in numbers]
    if lenient:
        exchanges = [each._replace(want_tail=b"") for each in exchanges]
    return Step(exchanges, KINDS[kind].fresh and not lenient)


def write_plan(path: Path, plan: Plan) -> None:
    """Make the file."""
    texts, steps, entries = _Texts(), bytearray(), bytearray()
    longest = count = 0
    for step in plan.steps:
        steps += STEP.pack(count, len(step.exchanges), step.fresh, 0)
        count += len(step.exchanges)
        for each in step.exchanges:
            places = [number for text in each[:4] for number in texts.place(text)]
            entries += ENTRY.pack(*places, each.reply_length)
            longest = max(longest, each.reply_length)
    header = HEADER.pack(MAGIC, len(plan.steps), count, plan.per_connection, plan.once, longest, 0)
    path.write_bytes(header + steps + entries + texts.content)


def read_plan(path: Path) -> Plan:
    """What the file says; ValueError when it is no plan."""
    content = path.read_bytes()
    magic, steps, entries, per_connection, once, _, _ = HEADER.unpack_from(content)
    if magic != MAGIC:
        raise ValueError(f"{path} is no plan")
    table = HEADER.size + steps * STEP.size
    texts = memoryview(content)[table + entries * ENTRY.size :]
    found = [_read_entry(content, table + i * ENTRY.size, texts) for i in range(entries)]
    rows = STEP.iter_unpack(content[HEADER.size : table])
    plan_steps = [
        Step(found[first : first + count], bool(fresh)) for first, count, fresh, _ in rows
    ]
    return Plan(plan_steps, per_connection, bool(once))


def _read_entry(content: bytes, offset: int, texts: memoryview) -> Exchange:
    *places, reply_length = ENTRY.unpack_from(content, offset)
    pairs = zip(places[::2], places[1::2])
    head, tail, want, want_tail = (bytes(texts[at : at + length]) for at, length in pairs)
    return Exchange(head, tail, want, want_tail, reply_length)


class _Texts:
    """Texts one behind the other, each once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[bytes, tuple[int, int]] = {}

    def place(self, text: bytes) -> tuple[int, int]:
        """Offset and length of the text."""
        place = self._places.get(text)
        if place is None:
            place = self._places[text] = len(self.content), len(text)
            self.content += text
        return place
