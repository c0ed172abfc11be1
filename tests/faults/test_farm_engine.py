"""The engine of a farm fails in every way: only a lookup that misses notices, and that briefly.

Clients whose sessions are here, and all seeds and keys, go on as before. A lookup that finds
nothing here waits for the deadline at most; it is held against seeds in the same second, which wait
for nothing but the machine. There is one line when the engine goes, and one when it is back.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.control_client import status_of
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.engine_faults import SILENT, full, restarted
from support.farm_engines import NEEDS_REDIS, Redis
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.fault_table import FaultTable
from support.raw_client import NO_SESSION, Connection, expect_seed, lookup

pytestmark = [pytest.mark.faults, NEEDS_REDIS]

DEADLINE, SLACK = 0.2, 0.02  # seconds; what a miss may wait
BACK = 35.0  # seconds in which it is asked again, after its return
AWAY = 45.0  # seconds; pauses of 1, 2, 4, 8 and 16 are over, and the longest has begun
MOST_MEMORY = 80 << 20  # bytes of the farm process
GONE = r"warning: unix:.*; sessions are not shared until it answers$"
SHARED = r"unix:.* answers: sessions are shared$"


class Missing(threading.Thread):
    """A client that looks for what nobody has, and asks for a seed after each."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self._path = daemon.socket_path
        self._end = threading.Event()
        self.misses: list[float] = []
        self.seeds: list[float] = []
        self.wrong: list[bytes] = []

    def run(self) -> None:
        """Ask until ``stop``."""
        with Connection(self._path) as connection:
            while not self._end.wait(0.002):
                began = time.monotonic()
                reply = connection.ask(lookup(b"smtp", b"missing %d" % len(self.misses)))
                between = time.monotonic()
                expect_seed(connection, 16)
                self.misses.append(between - began)
                self.seeds.append(time.monotonic() - between)
                self.wrong += [reply] if reply != NO_SESSION else []

    def stop(self) -> None:
        """Wait for the last reply."""
        self._end.set()
        self.join()


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture
def daemon(make_daemon: MakeDaemon, tmp_path: Path, redis: Redis) -> Daemon:
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    daemon = make_daemon(
        f"tlsmgr_farm_secret_file={secret}",
        f"tlsmgr_farm_store={redis.url}",
        f"tlsmgr_farm_deadline={int(DEADLINE * 1000)}ms",
        "tlsmgr_worker_processes=2",
    )
    daemon.wait_for_log(SHARED)
    return daemon


LONG = SILENT.keys() - {"stopped", "sends garbage"}


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=pytest.mark.long if f in LONG else ()) for f in SILENT]
)
def test_an_engine_that_fails(daemon: Daemon, redis: Redis, faults: FaultTable, fault: str) -> None:
    missing = Missing(daemon)
    with faults.under_load(daemon, f"engine {fault}") as load:
        missing.start()
        end = len(daemon.log())
        with SILENT[fault](redis):
            daemon.wait_for_log(GONE, start=end)
            time.sleep(1.0)  # a probe or two
            assert farm_memory(daemon) < MOST_MEMORY
        daemon.wait_for_log(SHARED, start=end, timeout=BACK)
        missing.stop()
        load.remark = f"worst miss {1000 * max(missing.misses):.0f} ms"
    assert missing.wrong == []
    assert max(missing.misses) <= DEADLINE + SLACK + max(missing.seeds)
    assert load.failed == []
    assert load.refused == []
    assert load.lost == 0
    lines = [line for line in daemon.log()[end:].splitlines() if "unix:" in line]
    assert [bool(re.search(GONE, line)) for line in lines] == [True, False], lines


def farm_memory(daemon: Daemon) -> int:
    """Return the bytes of memory of the farm process."""
    (process,) = [p for p in daemon.processes() if p.name() == "tlsmgr-farm"]
    return int(psutil.Process(process.pid).memory_full_info().uss)


def test_an_engine_that_is_full(daemon: Daemon, redis: Redis, faults: FaultTable) -> None:
    """It refuses to store, and its lookups go on."""
    with faults.under_load(daemon, "engine full"):
        end = len(daemon.log())
        with full(redis):
            daemon.wait_for_log("refuses to store sessions: .*maxmemory", start=end)
        daemon.wait_for_log("stores sessions again$", start=end)
    lines = [line for line in daemon.log()[end:].splitlines() if "unix:" in line]
    assert len(lines) == 2, lines


def test_an_engine_that_is_restarted_empty(
    daemon: Daemon, redis: Redis, faults: FaultTable
) -> None:
    """Lookups go on, and what is stored from then on is shared; it may be too short to be seen."""
    with faults.under_load(daemon, "engine restarted") as load:
        missing = Missing(daemon)
        missing.start()
        wait_for(redis.stored, "sessions in the engine")
        end = len(daemon.log())
        with restarted(redis):
            wait_for(redis.stored, "sessions in the engine again", timeout=BACK)
        wait_for(lambda: all(answers(daemon)), "its answers", timeout=BACK)
        missing.stop()
    assert missing.wrong == []
    assert load.failed == []
    assert load.refused == []
    assert max(missing.misses) <= DEADLINE + SLACK + max(missing.seeds)
    assert load.lost == 0
    lines = [line for line in daemon.log()[end:].splitlines() if "unix:" in line]
    assert [bool(re.search(GONE, line)) for line in lines] in ([], [True, False]), lines


def answers(daemon: Daemon) -> list[bool]:
    """Return whether each engine answers, as the status has it."""
    return [store["answers"] for store in status_of(daemon.socket_path)["farm"]["stores"]]


@pytest.mark.long
def test_an_engine_that_comes_back_after_long(daemon: Daemon, redis: Redis) -> None:
    """The pauses between two probes have become long: the end of one is the worst moment."""
    end = len(daemon.log())
    with Connection(daemon.socket_path) as connection:
        redis.stop()
        for number in range(1000):
            assert connection.ask(lookup(b"smtp", b"%d" % number)) == NO_SESSION
    daemon.wait_for_log(GONE, start=end)
    time.sleep(AWAY)
    redis.start()
    daemon.wait_for_log(SHARED, start=end, timeout=BACK)


@pytest.mark.long
def test_an_engine_that_is_not_there_at_the_start(
    make_daemon: MakeDaemon, tmp_path: Path, redis: Redis
) -> None:
    redis.stop()
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    daemon = make_daemon(f"tlsmgr_farm_secret_file={secret}", f"tlsmgr_farm_store={redis.url}")
    daemon.wait_for_log(GONE)
    with Connection(daemon.socket_path) as connection:
        began = time.monotonic()
        for number in range(200):
            assert connection.ask(lookup(b"smtp", b"%d" % number)) == NO_SESSION
        misses = time.monotonic() - began
        began = time.monotonic()
        for _ in range(200):
            expect_seed(connection, 16)
        assert misses < 5 * (time.monotonic() - began) + 0.1, "a miss costs nothing"
    redis.start()
    daemon.wait_for_log(SHARED, timeout=BACK)
