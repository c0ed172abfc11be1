"""The status object, from shared memory that the test fills in the place of other processes."""

from __future__ import annotations

import json

import pytest
from support.parent_parts import inherited_for

from tlsmgr.latency import SEEDS
from tlsmgr.processes.control_status import USAGE_TIME, Facts, Moment, make_status
from tlsmgr.processes.inherited import STALL_TIME, GeneratorFacts, Inherited
from tlsmgr.sessions.shared import Usage
from tlsmgr.stats import CACHE_INDEX, INDEX
from tlsmgr.status_object import (
    DEGRADED,
    SERVING,
    Cache,
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
        inherited.scoreboard.beat(slot, NOW.monotonic - 1, slot)
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


def test_latency(daemon: Inherited) -> None:
    counts = daemon.stats.row(1)
    timer = daemon.latency.timer(1, counts)
    timer._clock = lambda: 10.0
    counts[INDEX["seed"]] += 4
    timer.note(SEEDS, 10.0 - 100.5e-6)
    latency = status_of(daemon).latency["seed"]
    assert (latency.count, latency.max_us, latency.sum_us) == (4, 100, 400)
    assert latency.p50_us == 96.0
    assert latency.p99_us == 100.0, "not above the longest"
    assert latency.buckets[7] == (128.0, 4)
    assert [upper for upper, _ in latency.buckets][-2:] == [float(1 << 24), None]
    assert sum(count for _, count in latency.buckets) == 4


def test_a_worker_that_does_not_respond(daemon: Inherited) -> None:
    daemon.scoreboard.beat(2, NOW.monotonic - STALL_TIME, 0)
    status = status_of(daemon)
    assert (status.state, status.reasons) == (DEGRADED, ("1 of 2 workers serve",))
    assert len(status.workers) == 2


def test_a_retired_worker_is_shown_and_not_counted(daemon: Inherited) -> None:
    daemon.scoreboard.retire(2)
    assert status_of(daemon).reasons == ("1 of 2 workers serve",)
    daemon.scoreboard.note_process(3, 103)
    daemon.scoreboard.beat(3, NOW.monotonic, 0)
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
        daemon.scoreboard.beat(slot, FACTS.started + USAGE_TIME, 0)
    assert status_of(daemon, Moment(FACTS.started + USAGE_TIME, NOW.of_day)).reasons == ()


def test_a_clock_that_was_set_back(daemon: Inherited) -> None:
    assert status_of(daemon, Moment(NOW.monotonic, SECOND - 100)).caches["smtp"].oldest_seconds == 0
