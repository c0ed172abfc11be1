"""Requests that a grammar generates, right in their form or slightly wrong; and the wire reader."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import time
from collections.abc import Iterator

import pytest
from support.daemon_process import MakeDaemon
from support.fault_table import FaultTable
from support.raw_client import Connection

from tlsmgr.wire import REQUEST_LIMIT, Paused, RequestReader, read_whole

pytestmark = [pytest.mark.faults, pytest.mark.long]

GARBAGE = 50_000
FUZZ_TIME = float(os.environ.get("TLSMGR_FUZZ_SECONDS", "60"))
FUZZ_SEED = int(os.environ.get("TLSMGR_FUZZ_SEED", "12"))

ATTRIBUTES = {
    b"seed": (b"size",),
    b"policy": (b"cache_type",),
    b"lookup": (b"cache_type", b"cache_id"),
    b"update": (b"cache_type", b"cache_id", b"session"),
    b"delete": (b"cache_type", b"cache_id"),
    b"tktkey": (b"keyname",),
}


class Grammar:
    """Makes requests; at each place it takes the right thing, or with some luck another one."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def request(self) -> bytes:
        """Return one request and its terminator, or nearly."""
        dice = self._dice
        name = dice.choice(list(ATTRIBUTES))
        pairs = [(b"request", name), *((n, self._value(n)) for n in ATTRIBUTES[name])]
        if dice.random() < 0.2:
            dice.shuffle(pairs)
        if dice.random() < 0.2:
            del pairs[dice.randrange(len(pairs))]
        if dice.random() < 0.2:
            pairs.insert(dice.randrange(len(pairs) + 1), (self._name(), self._value(b"")))
        text = b"".join(self._slip(n) + b"\0" + self._slip(v) + b"\0" for n, v in pairs)
        return text + dice.choice([b"\0"] * 12 + [b"", b"\0\0", b"\0W\0", b"x\0"])

    def _name(self) -> bytes:
        return self._dice.choice([b"request", b"size", b"session", b"keyname", b"", b"x", b"\xff"])

    def _value(self, name: bytes) -> bytes:
        dice = self._dice
        if name == b"size":
            numbers = [b"32", b"255", b"256", b"0", b"-1", b"4294967296", b"1e3", b" 7", b"9" * 30]
            return dice.choice([*numbers, b"%d" % dice.randrange(300)])
        if name == b"cache_type":
            return dice.choice([b"smtp", b"smtpd", b"lmtp", b"SMTP", b"", b"x" * 300])
        data = dice.randbytes(dice.choice([0, 1, 16, 17, 500, 5000]))
        if name in (b"session", b"keyname"):
            return dice.choice([base64.b64encode(data), base64.b64encode(data)[:-1], b"!" + data])
        return data.replace(b"\0", b"") or b"id"

    def _slip(self, text: bytes) -> bytes:
        if self._dice.random() > 0.02:
            return text
        at = self._dice.randrange(len(text) + 1)
        return text[:at] + self._dice.randbytes(self._dice.randrange(1, 5)) + text[at:]


def test_requests_of_a_grammar(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2")
    workers = daemon.workers()
    grammar, dice = Grammar(random.Random(10)), random.Random(11)
    with faults.under_load(daemon, f"{GARBAGE:,} requests of a grammar") as load:
        before, left = daemon.memory(), GARBAGE
        while left > 0:
            pieces = dice.randrange(1, 60)
            left -= pieces
            with Connection(daemon.socket_path) as connection, contextlib.suppress(OSError):
                for _ in range(pieces):
                    connection.send(grammar.request(), dice.choice([0, 0, 0, 7]))
                connection.half_close()
                connection.read_to_end()
        load.remark = f"memory grew by {(daemon.memory() - before) / 2**20:.1f} MiB"
    assert daemon.workers() == workers
    assert (load.failed, load.broken, load.lost) == ([], [], 0)


# The wire reader by itself.


def read_in_segments(data: bytes, cuts: list[int]) -> list[object]:
    """Return all events but Paused, when the data comes in these segments."""
    reader = RequestReader()
    events: list[object] = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if start == end:
            continue
        reader.receive(data[start:end])
        while (event := reader.next_event()) is not None:
            if not isinstance(event, Paused):
                events.append(event)
        assert reader.size <= REQUEST_LIMIT
    events.append(reader.end_of_input())
    return events


def streams(seed: int) -> Iterator[tuple[bytes, random.Random]]:
    """Yield streams of several requests each, for FUZZ_TIME."""
    dice = random.Random(seed)
    grammar = Grammar(dice)
    until = time.monotonic() + FUZZ_TIME
    while time.monotonic() < until:
        data = b"".join(grammar.request() for _ in range(dice.randrange(1, 6)))
        if dice.random() < 0.1:
            data = data[: dice.randrange(1, len(data) + 1)]
        yield data, dice


def test_the_reader_with_any_segments() -> None:
    """It never raises, and how the bytes are cut makes no difference, but for two cases.

    A segment that starts with ``request`` may start a new list, and a wake-up comes alone.
    """
    count = 0
    for data, dice in streams(FUZZ_SEED):
        count += 1
        events = read_in_segments(data, [])
        whole = read_whole(data)
        assert whole is None or events == [whole, None]
        if b"W\0" not in data:
            cuts = {dice.randrange(1, len(data) + 1) for _ in range(9)}
            assert events == read_in_segments(
                data, sorted(at for at in cuts if not data[at:].startswith(b"request\0"))
            )
    assert count > 1000
