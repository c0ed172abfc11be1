"""What a farm's engine costs: nothing for what is here, and little for what it answers.

Ratios, because machines differ: local requests are compared with those of a daemon without a farm,
answers of the engine with answers from here. The figures are printed: `-rP` shows them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from bench import loads
from bench.drive import Generators, Tally, build, compiler
from support.control_client import status_of
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.farm_engines import NEEDS_REDIS, Redis
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.in_turn import SESSION, InTurn
from support.raw_client import OK, Connection, expect_seed, found, lookup, update

pytestmark = [pytest.mark.long, NEEDS_REDIS]
need_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C compiler")

TRIES = 4  # the neighbours of one may have been restless
MOST_WITH = 1.03  # times as long as without a farm, at the median
SECONDS = 4.0  # of a comparison
CLIENTS = 64
SESSIONS, WINDOW = 20_000, 500  # in the engine; updates that wait for it
RATE = 10_000  # lookups that a farm process can answer in a second of processor time
SLOWER = 10  # times, compared with lookups that are answered here
AS_SEEDS = 25  # seeds that take as long as one lookup for a single client


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))


def start(make_daemon: MakeDaemon, secret: Path, store: Redis | None) -> Daemon:
    options = [f"tlsmgr_farm_secret_file={secret}", "tlsmgr_worker_processes=1"]
    if store is None:
        return make_daemon(*options)
    daemon = make_daemon(*options, f"tlsmgr_farm_store={store.url}", "tlsmgr_farm_deadline=10s")
    daemon.wait_for_log("answers: sessions are shared$")
    return daemon


def test_requests_that_need_no_engine(make_daemon: MakeDaemon, secret: Path, redis: Redis) -> None:
    """Seeds and local hits, at the median."""
    worst: list[float] = []
    while not worst or (min(worst) > MOST_WITH and len(worst) < TRIES):
        daemon, without = start(make_daemon, secret, redis), start(make_daemon, secret, None)
        with InTurn(daemon, without) as pair:
            pair.ask(SECONDS)
            ratios = pair.ratios(0.5)
        worst.append(max(ratios["seed"], ratios["local hit"]))
        daemon.stop()  # two processes that are alike may differ by more, as long as they live
        without.stop()
    assert min(worst) <= MOST_WITH


class Load:
    """Lookups of sessions that a host has stored; each once, by many clients."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._generator = build("generator", directory)

    def run(self, daemon: Daemon, kind: str, keys: Sequence[int]) -> Tally:
        """Make these requests."""
        plan = self._directory / kind
        steps = [loads.Step([loads.exchange(kind, key) for key in keys], fresh=False)]
        loads._write_plan(plan, steps, 0, once=True)
        with Generators(
            self._generator, plan, "tlsmgr", daemon.socket_path, CLIENTS, 120.0
        ) as clients:
            clients.go()
            tally = clients.result()
        assert (tally.wrong, tally.requests) == (0, len(keys)), tally.first_wrong
        return tally

    def fill(self, daemon: Daemon, redis: Redis) -> None:
        """Have all sessions in the engine."""
        for first in range(0, SESSIONS, WINDOW):
            self.run(daemon, "update", range(first, first + WINDOW))
            wait_for(lambda n=first: entries(redis) == n + WINDOW, "them")  # type: ignore[misc]


def entries(redis: Redis) -> int:
    return int(redis.call("DBSIZE")[1:])


def farm_of(daemon: Daemon) -> psutil.Process:
    (process,) = (each for each in daemon.processes() if each.name() == "tlsmgr-farm")
    return process


def farm_status(daemon: Daemon) -> Any:
    return status_of(daemon.socket_path)["farm"]


@need_compiler
def test_lookups_that_the_engine_answers(
    make_daemon: MakeDaemon, secret: Path, redis: Redis, tmp_path: Path
) -> None:
    """By many clients at once; then the same again, from here."""
    load = Load(tmp_path)
    load.fill(start(make_daemon, secret, redis), redis)
    daemon = start(make_daemon, secret, redis)
    before = sum(farm_of(daemon).cpu_times()[:2])
    remote = load.run(daemon, "lookup", range(SESSIONS))
    used = sum(farm_of(daemon).cpu_times()[:2]) - before
    local = load.run(daemon, "lookup", range(SESSIONS))
    assert farm_status(daemon)["found"] == SESSIONS
    rates = [1e9 * tally.requests / tally.elapsed for tally in (remote, local)]
    print(
        f"{rates[0]:.0f} lookups a second answered by the engine, {rates[1]:.0f} from here;"
        f" {1e6 * used / SESSIONS:.1f} us of the farm process each; load {os.getloadavg()[0]:.1f}"
    )
    assert used * RATE < SESSIONS
    assert SLOWER * rates[0] > rates[1]


def test_how_long_a_single_client_waits(
    make_daemon: MakeDaemon, secret: Path, redis: Redis, tmp_path: Path
) -> None:
    """For a session of another host; the figure to beat is a millisecond."""
    one, daemon = start(make_daemon, secret, redis), start(make_daemon, secret, redis)
    ids = [b"session %d" % number for number in range(WINDOW)]
    with Connection(one.socket_path) as connection:
        for cache_id in ids:
            assert connection.ask(update(b"smtp", cache_id, SESSION)) == OK
    wait_for(lambda: entries(redis) == len(ids), "them in the engine")
    waits, seeds = [], []
    with Connection(daemon.socket_path) as connection:
        for cache_id in ids:
            began = time.perf_counter()
            assert connection.ask(lookup(b"smtp", cache_id)) == found(SESSION)
            between = time.perf_counter()
            expect_seed(connection, 32)
            waits.append(between - began)
            seeds.append(time.perf_counter() - between)
    wait, seed = statistics.median(waits), statistics.median(seeds)
    print(f"median {1e6 * wait:.0f} us, a seed {1e6 * seed:.0f} us; load {os.getloadavg()[0]:.1f}")
    assert wait < AS_SEEDS * seed
