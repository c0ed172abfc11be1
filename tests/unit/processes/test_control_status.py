"""The status object, from shared memory that the test fills in the place of other processes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.parent_parts import inherited_for

from tlsmgr.farm.engine import Settings
from tlsmgr.processes.control_status import USAGE_TIME, Facts, Moment, make_status
from tlsmgr.processes.farm_plan import FarmPlan
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.scoreboard import STALL_TIME, GeneratorFacts
from tlsmgr.processes.setup import Slots
from tlsmgr.sessions.shared import Usage
from tlsmgr.stats import CACHE_INDEX, INDEX
from tlsmgr.status_object import (
    DEGRADED,
    SERVING,
    Cache,
    Farm,
    FarmStore,
    Prng,
    Status,
    TicketKey,
    Worker,
    as_json,
    parse,
)

NOW = Moment(monotonic=5000.0, of_day=1_795_220_454.5)
SECOND = int(NOW.of_day)
FACTS = Facts(
    pid=7,
    version="1.2",
    started=4000.0,
    config_directory="/etc/postfix",
    workers=2,
    entropy_source="dev:/dev/urandom",
)


@pytest.fixture
def daemon() -> Inherited:
    """Two workers that serve, with a cache that can be used."""
    inherited = inherited_for(2)
    for slot in (1, 2):
        inherited.scoreboard.note_process(slot, 100 + slot)
        inherited.scoreboard.beat(slot, NOW.monotonic - 1)
        inherited.scoreboard.connection_count(slot)[0] = slot
    note_usage(inherited, NOW.monotonic - 1)
    return inherited


def note_usage(inherited: Inherited, noted: float) -> None:
    inherited.caches[0].shared.note_usage(Usage(3, 4096, 1 << 20, SECOND - 60, noted))


def status_of(inherited: Inherited, now: Moment = NOW) -> Status:
    status = make_status(FACTS, inherited, now)
    assert parse(json.loads(json.dumps(as_json(status)))) == status
    return status


def test_a_daemon_that_serves(daemon: Inherited) -> None:
    status = status_of(daemon)
    assert (status.state, status.reasons) == (SERVING, ())
    assert (status.pid, status.version, status.uptime_seconds) == (7, "1.2", 1000.0)
    assert status.config_directory == "/etc/postfix"
    assert status.workers == (Worker(101, 1, 0), Worker(102, 2, 0))
    assert status.caches == {
        "smtp": Cache(entries=3, bytes=4096, size_limit=1 << 20, oldest_seconds=60)
    }
    assert (status.ticket_keys, status.next_rotation_seconds) == ((), None)
    assert status.prng == Prng(source="dev:/dev/urandom")
    assert set(status.latency) == {"seed", "policy", "lookup", "update", "delete", "tktkey"}
    assert status.latency["seed"].p50_us is None


def test_counts(daemon: Inherited) -> None:
    counted = [(1, "seed", 5), (1, "lookup", 4), (2, "update", 3), (2, "batches", 9)]
    of_cache = [(1, "hits", 3), (2, "hits", 2), (2, "misses", 4), (0, "expired", 1)]
    for slot, name, count in counted:
        daemon.stats.row(slot)[INDEX[name]] += count
    for slot, name, count in of_cache:
        daemon.stats.cache_row(slot, 0)[CACHE_INDEX[name]] += count
    status = status_of(daemon)
    assert [worker.requests for worker in status.workers] == [9, 3]
    cache = status.caches["smtp"]
    assert (cache.lookups, cache.hits, cache.expired) == (9, 5, 1)
    assert (status.counters["seed"], status.counters["hits"]) == (5, 5)


def test_ticket_keys(daemon: Inherited) -> None:
    """By the beginning of their names only."""
    old, new = (daemon.ticket_keys.current(SECOND - ago) for ago in (2000, 100))
    assert old is not None
    assert new is not None
    status = status_of(daemon)
    assert status.ticket_keys == (
        TicketKey(new.hex()[:8], 100, "new"),
        TicketKey(old.hex()[:8], 2000, "old"),
    )
    assert status.next_rotation_seconds == 1799 - 100


def test_the_generator(daemon: Inherited) -> None:
    daemon.scoreboard.note_generator(GeneratorFacts(4, NOW.monotonic - 30, NOW.monotonic - 0.5))
    assert status_of(daemon).prng == Prng(4, 30.0, "dev:/dev/urandom", 0.5)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            GeneratorFacts(source_fails=True),
            "the entropy source dev:/dev/urandom cannot be used; the log says why",
        ),
        (
            GeneratorFacts(exchange_fails=True),
            "the PRNG exchange file cannot be updated; the log says why",
        ),
    ],
)
def test_what_the_generator_lacks(daemon: Inherited, fault: GeneratorFacts, reason: str) -> None:
    daemon.scoreboard.note_generator(fault)
    status = status_of(daemon)
    assert (status.state, status.reasons) == (DEGRADED, (reason,))


def test_a_janitor_that_something_else_than_a_session_file_blocks(daemon: Inherited) -> None:
    janitor = Slots(FACTS.workers).janitor
    daemon.scoreboard.beat(janitor, NOW.monotonic - STALL_TIME)
    assert status_of(daemon).reasons == ()
    with daemon.scoreboard.away_from_files(janitor):
        (reason,) = status_of(daemon).reasons
        assert reason == "the entropy source or the PRNG exchange file does not respond"
        daemon.scoreboard.beat(janitor, NOW.monotonic)
        assert status_of(daemon).reasons == ()


# The farm


class OneKey:
    """A farm's key source with a single key."""

    key: bytes | None = b"\x01\x23\xab\xcd" + bytes(84)

    def current(self, now: int) -> bytes | None:
        return self.key

    def named(self, name: bytes, now: int) -> bytes | None:
        return self.key

    def known(self, now: int) -> list[tuple[bytes, int, bool]]:
        old = bytes(16), now - 200, False
        return [(self.key[:16], now - 100, True), old] if self.key else []

    def next_rotation(self, now: int) -> int:
        return now + 60


def of_a_farm(daemon: Inherited) -> tuple[Inherited, OneKey, FarmPlan]:
    """The daemon with a farm's keys, and a store that answers."""
    source = OneKey()
    engine = Settings("redis", "redis://a", {"password": "not to be shown"}, 0.05)
    plan = FarmPlan((engine,), {b"smtp": 0}, memoryview(bytearray(b"\1")), 0.05, {}, {}, None)
    daemon.ticket_keys._source = source
    return replace(daemon, farm=plan), source, plan


def test_a_host_of_a_farm(daemon: Inherited) -> None:
    assert status_of(daemon).farm is None
    shared, _, _ = of_a_farm(daemon)
    for name, count in (("lookups", 9), ("found", 5), ("late", 2), ("dropped", 1)):
        shared.stats.row(1)[INDEX[f"farm_{name}"]] += count
    status = status_of(shared)
    store = FarmStore("redis://a", ("smtp",), answers=True)
    assert status.farm == Farm("0123abcd", (store,), asked=9, found=5, late=2, dropped=1)
    assert status.reasons == ()
    assert "not to be shown" not in str(as_json(status))


def test_a_store_that_does_not_answer(daemon: Inherited) -> None:
    shared, _, plan = of_a_farm(daemon)
    plan.open_lanes[0] = 0
    status = status_of(shared)
    assert status.reasons == ("redis://a does not answer; sessions are not shared",)
    assert status.farm is not None
    assert not status.farm.stores[0].answers


def test_a_farm_that_cannot_be_used(daemon: Inherited) -> None:
    """It is configured, and the log says what is wrong with it."""
    wanted = replace(FACTS, wants_farm_keys=True, wants_farm_store=True)
    keys, store = make_status(wanted, daemon, NOW).reasons
    assert keys == "the farm secret cannot be used, ticket keys are not shared; the log says why"
    assert store == "tlsmgr_farm_store cannot be used, sessions are not shared; the log says why"
    shared, source, _ = of_a_farm(daemon)
    assert make_status(wanted, shared, NOW).reasons == ()
    source.key = None
    assert make_status(wanted, shared, NOW).reasons == (keys,)


def test_latency(daemon: Inherited) -> None:
    counts = daemon.stats.row(1)
    timer = daemon.latency.timer(1, counts)
    counts[INDEX["seed"]] += 4
    timer.keep(10.0, 10.0, 10.0 + 100.5e-6, 10.0)
    timer.publish()
    latency = status_of(daemon).latency["seed"]
    assert (latency.count, latency.max_us, latency.sum_us) == (4, 100, 400)
    assert latency.p50_us == 96.0
    assert latency.p99_us == 100.0, "not above the longest"
    assert latency.buckets[7] == (128.0, 4)
    assert [upper for upper, _ in latency.buckets][-2:] == [float(1 << 24), None]
    assert sum(count for _, count in latency.buckets) == 4


def test_a_worker_that_does_not_respond(daemon: Inherited) -> None:
    daemon.scoreboard.beat(2, NOW.monotonic - STALL_TIME)
    status = status_of(daemon)
    assert (status.state, status.reasons) == (DEGRADED, ("1 of 2 workers serve",))
    assert len(status.workers) == 2


def test_a_retired_worker_is_shown_and_not_counted(daemon: Inherited) -> None:
    daemon.scoreboard.retire(2)
    assert status_of(daemon).reasons == ("1 of 2 workers serve",)
    daemon.scoreboard.note_process(3, 103)
    daemon.scoreboard.beat(3, NOW.monotonic)
    status = status_of(daemon)
    assert status.state == SERVING
    assert [worker.pid for worker in status.workers] == [101, 102, 103]
    daemon.scoreboard.clear(2)
    assert [worker.pid for worker in status_of(daemon).workers] == [101, 103]


def test_a_worker_that_only_starts_is_not_shown(daemon: Inherited) -> None:
    daemon.scoreboard.note_process(3, 103)
    assert [worker.pid for worker in status_of(daemon).workers] == [101, 102]


def test_a_file_system_that_blocks(daemon: Inherited) -> None:
    daemon.scoreboard.files_blocked[0] = 1
    note_usage(daemon, 1.0)
    reason = "a file system does not respond; sessions are not cached"
    assert status_of(daemon).reasons == (reason,)


def test_a_cache_that_cannot_be_used(daemon: Inherited) -> None:
    """No worker had it open for a while; at the start it takes that time to know."""
    note_usage(daemon, 0.0)
    reason = "the smtp session cache cannot be used; the log says why"
    assert status_of(daemon).reasons == (reason,)
    for slot in (1, 2):
        daemon.scoreboard.beat(slot, FACTS.started + USAGE_TIME)
    assert status_of(daemon, Moment(FACTS.started + USAGE_TIME, NOW.of_day)).reasons == ()


def test_a_cache_that_another_server_keeps(daemon: Inherited) -> None:
    """Nobody has a file of it open; the server is another matter, and a bad table is as well."""
    note_usage(daemon, 0.0)
    plan = daemon.caches[0]._replace(table="memcache:/etc/postfix/sessions.cf")
    remote = replace(daemon, caches=(plan,))
    reason = "the smtp session cache cannot be used; the log says why"
    assert status_of(remote).reasons == (reason,)
    _, _, farm = of_a_farm(daemon)
    engine = Settings("memcache", plan.table, {}, 0.05)
    farm.open_lanes[0] = 1
    shared = replace(remote, farm=replace(farm, engines=(engine,), caches={b"smtp": 0}))
    assert status_of(shared).reasons == ()
    wanted = replace(FACTS, wants_farm_store=True)
    store = "tlsmgr_farm_store cannot be used, sessions are not shared; the log says why"
    assert make_status(wanted, shared, NOW).reasons == (store,)
    farm.open_lanes[0] = 0
    reason = f"{plan.table} does not answer; sessions are not shared"
    assert status_of(shared).reasons == (reason,)


def test_a_clock_that_was_set_back(daemon: Inherited) -> None:
    assert status_of(daemon, Moment(NOW.monotonic, SECOND - 100)).caches["smtp"].oldest_seconds == 0
