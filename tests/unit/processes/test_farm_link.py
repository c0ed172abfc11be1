"""A worker's link to the farm process, whose place the test takes: deadlines, serials, bounds."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.session_bytes import TLS_1_2, session

from tlsmgr.farm.codec import Found, Item
from tlsmgr.farm.messages import (
    NO_KEY,
    Answer,
    Ask,
    Message,
    Remove,
    Store,
    Writer,
    messages_in,
    serial_of,
)
from tlsmgr.processes.connections import AWAY, WAITING, Connection, Connections
from tlsmgr.processes.farm_link import MOST_LATE, MOST_MISSES, FarmLink
from tlsmgr.processes.farm_plan import FarmPlan
from tlsmgr.service import Deferred, Remote
from tlsmgr.sessions.cache import Change, SessionCache, Take
from tlsmgr.sessions.rules import CacheRules
from tlsmgr.sessions.seal import Nonces
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.single_use import make_cache
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import COUNTERS, INDEX
from tlsmgr.wire import FAILED, Lookup, write_reply, write_session

SERIAL, NOW = 70_000, 1000  # a process that was forked late
NOT_FOUND = write_reply(Lookup, FAILED)


class PlainCodec:
    """Keys and values that a test can read."""

    def keys(self, cache_id: bytes, now: int) -> tuple[bytes, ...]:
        return () if cache_id == b"no key" else (b"1" + cache_id, b"2" + cache_id)

    def encode(self, cache_id: bytes, session: bytes, now: int) -> Item | None:
        return None if session == b"too large" else Item(b"1" + cache_id, session, 60)

    def decode(self, key: bytes, value: bytes, now: int) -> Found | None:
        if value.startswith(b"0"):  # a session of ``session_bytes``
            return Found(now - 5, value)
        return None if value == b"damaged" else Found(now - 5, key + b"=" + value)


@dataclass
class Bench:
    """The link, both ends of its socket, and a client."""

    link: FarmLink
    farm: socket.socket
    connections: Connections
    cache: SessionCache
    counts: memoryview
    open_lanes: memoryview
    client: socket.socket
    connection: Connection

    def ask(self, cache_id: bytes = b"id") -> None:
        """Have the client's lookup sent."""
        assert self.link.may_ask(b"smtp", cache_id)
        self.link.ask(self.connection, Remote(self.cache, b"smtp", cache_id), NOW)
        self.run()

    def run(self, later: float = 0.0) -> list[tuple[Connection, bytes]]:
        return self.link.run(time.monotonic() + later, self.connections)

    def sent(self) -> list[Message]:
        """What the farm process gets."""
        found: list[Message] = []
        while select.select([self.farm], [], [], 0)[0]:
            datagram = memoryview(self.farm.recv(1 << 20))
            assert serial_of(datagram) == SERIAL
            found += messages_in(datagram)
        return found

    def answer(self, number: int, which: int, value: bytes = b"", serial: int = SERIAL) -> None:
        writer = Writer(serial)
        writer.add(Answer(number, which, value))
        for datagram in writer.take():
            self.farm.send(datagram.data)
        self.link.receive(NOW)

    def count(self, name: str) -> int:
        return int(self.counts[INDEX[name]])


@pytest.fixture
def bench() -> Iterator[Bench]:
    ours, farm = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    open_lanes = memoryview(bytearray(b"\1"))
    plan = FarmPlan((), {b"smtp": 0}, open_lanes, 10.0, {}, {}, None)
    counts = memoryview(bytearray(8 * len(COUNTERS))).cast("Q")
    link = FarmLink(plan, ours, SERIAL, {b"smtp": PlainCodec()}, counts)
    shared = SharedCache(SharedMemory(4096), bytes(64), True)
    cache = SessionCache(CacheRules("smtp", 3600, 1 << 20, 0, False), shared, None, Nonces(1))
    connections = Connections(select.epoll())
    client, server = socket.socketpair()
    server.setblocking(False)
    fd = server.detach()
    connections.add(fd)
    connection = connections.get(fd)
    assert connection is not None
    yield Bench(link, farm, connections, cache, counts, open_lanes, client, connection)
    connections.close_all()
    for end in (client, ours, farm):
        end.close()


def test_an_answer_in_time(bench: Bench) -> None:
    bench.ask()
    assert bench.connection.state == AWAY
    assert bench.sent() == [Ask(0, 1, (b"1id", b"2id"))]
    assert bench.run() == []
    bench.answer(1, 1, b"session")
    assert bench.run() == [(bench.connection, write_session(b"2id=session"))]
    assert bench.connection.state == WAITING
    assert bench.link.fills == [Deferred(bench.cache, Change(b"id", b"2id=session", NOW - 5))]
    assert (bench.count("farm_found"), bench.count("farm_late")) == (1, 0)
    assert not bench.link.is_busy


def test_nothing_found_is_remembered(bench: Bench) -> None:
    bench.ask()
    bench.answer(1, NO_KEY)
    assert bench.run() == [(bench.connection, NOT_FOUND)]
    assert not bench.link.may_ask(b"smtp", b"id")
    assert bench.link.may_ask(b"smtp", b"other id")
    bench.link.write_behind([Deferred(bench.cache, Change(b"id", b"session"))], NOW)
    assert bench.link.may_ask(b"smtp", b"id")


def test_a_value_that_is_no_session_is_a_miss(bench: Bench) -> None:
    bench.ask()
    bench.answer(1, 0, b"damaged")
    assert bench.run() == [(bench.connection, NOT_FOUND)]
    assert (bench.link.fills, bench.count("farm_found")) == ([], 0)


def test_the_deadline_and_a_late_answer(bench: Bench) -> None:
    bench.ask()
    assert 9.0 < bench.link.seconds_left(time.monotonic()) <= 10.0
    assert bench.run(later=9.9) == []
    assert bench.run(later=10.1) == [(bench.connection, NOT_FOUND)]
    assert bench.count("farm_late") == 1
    assert bench.link.may_ask(b"smtp", b"id"), "late is no miss"
    bench.answer(1, 0, b"session")
    assert bench.run() == []
    assert bench.link.fills == [Deferred(bench.cache, Change(b"id", b"1id=session", NOW - 5))]
    assert (bench.count("farm_lookups"), bench.count("farm_found")) == (1, 1)


def test_a_session_that_was_deleted_meanwhile_is_not_stored(bench: Bench) -> None:
    bench.ask()
    bench.link.write_behind([Deferred(bench.cache, Change(b"id", None))], NOW)
    bench.answer(1, 0, b"session")
    assert bench.link.fills == []


def test_an_answer_for_a_dead_worker_is_dropped(bench: Bench) -> None:
    bench.ask()
    bench.answer(1, 0, b"session", serial=SERIAL - 1)
    assert bench.run() == []
    assert bench.connection.state == AWAY


def test_a_client_that_has_gone_gets_no_reply(bench: Bench) -> None:
    bench.ask()
    bench.connections.drop(bench.connection)
    bench.answer(1, 0, b"session")
    assert bench.run() == []
    assert len(bench.link.fills) == 1


def test_no_question_while_the_engine_is_away_or_without_a_key(bench: Bench) -> None:
    bench.open_lanes[0] = 0
    assert not bench.link.may_ask(b"smtp", b"id")
    bench.open_lanes[0] = 1
    assert not bench.link.may_ask(b"lmtp", b"id")
    bench.link.ask(bench.connection, Remote(bench.cache, b"smtp", b"no key"), NOW)
    assert bench.run() == [(bench.connection, NOT_FOUND)]
    assert bench.sent() == []


def test_changes_are_passed_on(bench: Bench) -> None:
    changes = [Change(b"a", b"session"), Change(b"b", None), Change(b"c", b"too large")]
    bench.link.write_behind([Deferred(bench.cache, change) for change in changes], NOW)
    assert bench.sent() == [Store(0, b"1a", b"session", 60), Remove(0, (b"1b", b"2b"))]
    assert bench.count("farm_dropped") == 1
    assert not bench.link.may_ask(b"smtp", b"b")


def test_sessions_that_are_used_once_are_not_shared(bench: Bench) -> None:
    """Not those of TLS 1.3: another host could use the same ticket. Others are, as ever."""
    rules = bench.cache.rules._replace(single_use="strict")
    cache = make_cache(rules, bench.cache._shared, None, Nonces(1))
    older = session("older", TLS_1_2)
    changes: list[Change | Take] = [
        Change(b"a", session("a")),
        Take(b"a"),
        Change(b"b", older),
        Change(b"c", None),
    ]
    bench.link.write_behind([Deferred(cache, change) for change in changes], NOW)
    assert bench.sent() == [Store(0, b"1b", older, 60), Remove(0, (b"1c", b"2c"))]
    for number, (found, reply) in enumerate([(session("x"), NOT_FOUND), (older, None)], 1):
        bench.link.ask(bench.connection, Remote(cache, b"smtp", b"%d" % number), NOW)
        bench.run()
        bench.answer(number, 0, found)
        assert bench.run() == [(bench.connection, reply or write_session(found))]
    assert [fill.change.session for fill in bench.link.fills] == [older]


def test_a_farm_process_that_reads_nothing_blocks_nobody(bench: Bench) -> None:
    session = os.urandom(4000)
    changes = [Deferred(bench.cache, Change(b"%d" % n, session)) for n in range(2000)]
    bench.link.write_behind(changes, NOW)
    stored = len(bench.sent())
    assert 0 < stored < 2000
    assert bench.count("farm_dropped") == 2000 - stored


def test_memory_is_bounded(bench: Bench) -> None:
    for number in range(MOST_MISSES + MOST_LATE):
        bench.link.ask(bench.connection, Remote(bench.cache, b"smtp", b"%d" % number), NOW)
        if number % 500 == 0:
            bench.run(later=10.1)
            bench.sent()
    bench.run(later=10.1)
    assert len(bench.link._late) == MOST_LATE
    for number in range(MOST_MISSES + 10):
        bench.link.write_behind([Deferred(bench.cache, Change(b"%d" % number, None))], NOW)
        bench.sent()
    assert len(bench.link._misses) <= MOST_MISSES


def test_giving_up_at_the_end(bench: Bench) -> None:
    bench.ask()
    bench.link.give_up()
    assert bench.run() == [(bench.connection, NOT_FOUND)]
