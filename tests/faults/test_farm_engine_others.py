"""An engine fails, and requests that need none take as long as without a farm.

One daemon has the engine, the other has no farm; they are asked in turn. Both have a client whose
lookups find nothing and whose updates are to be shared. Compared is the 99th percentile of each
kind of request, from the beginning of the fault until some probes have failed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.control_client import status_of
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.engine_faults import FAULTS
from support.farm_engines import NEEDS_REDIS, Redis
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.in_turn import SESSION, InTurn
from support.raw_client import Connection, lookup, update

pytestmark = [pytest.mark.faults, pytest.mark.long, NEEDS_REDIS]

MOST = 1.5  # times as long
SECONDS = 3.0  # of a fault
TRIES = 5  # the neighbours of one may have been restless
BACK = 35.0  # seconds in which it is asked again, after its return
PAUSE = 0.002  # seconds between two lookups that find nothing
MOST_CPU = 0.5  # of one CPU, that the farm process takes during a fault


class Other(threading.Thread):
    """A client that looks for what is nowhere, and stores what is to be shared."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self._path = daemon.socket_path
        self._end = threading.Event()

    def run(self) -> None:
        number = 0
        with Connection(self._path) as connection:
            while not self._end.wait(PAUSE):
                number += 1
                connection.ask(lookup(b"smtp", b"nowhere %d" % number))
                connection.ask(update(b"smtp", b"stored %d" % (number % 100), SESSION))

    def stop(self) -> None:
        self._end.set()
        self.join()


@contextlib.contextmanager
def busy(daemon: Daemon) -> Iterator[None]:
    """Have such a client for the block."""
    other = Other(daemon)
    other.start()
    try:
        yield
    finally:
        other.stop()


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


def start(make_daemon: MakeDaemon, tmp_path: Path, redis: Redis) -> tuple[Daemon, Daemon]:
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    common = f"tlsmgr_farm_secret_file={secret}", "tlsmgr_worker_processes=1"
    return make_daemon(*common, f"tlsmgr_farm_store={redis.url}"), make_daemon(*common)


def answers(daemon: Daemon) -> bool:
    """Whether the engine may be asked, as the status has it."""
    (store,) = status_of(daemon.socket_path)["farm"]["stores"]
    return bool(store["answers"])


def cpu_seconds(daemon: Daemon) -> float:
    """Return the processor time of the farm process."""
    (process,) = (each for each in daemon.processes() if each.name() == "tlsmgr-farm")
    return float(sum(process.cpu_times()[:2]))


@pytest.mark.parametrize("fault", FAULTS)
def test_others_do_not_notice(
    make_daemon: MakeDaemon, tmp_path: Path, redis: Redis, fault: str
) -> None:
    hurt, whole = start(make_daemon, tmp_path, redis)
    wait_for(lambda: answers(hurt), "the engine")
    with busy(hurt), busy(whole), InTurn(hurt, whole) as pair:
        worst: list[float] = []
        while not worst or (min(worst) > MOST and len(worst) < TRIES):
            with FAULTS[fault](redis):
                before = cpu_seconds(hurt)
                pair.ask(SECONDS)
                assert cpu_seconds(hurt) - before < MOST_CPU * SECONDS
            worst.append(max(pair.ratios(0.99).values()))
            wait_for(lambda: answers(hurt), "the engine again", timeout=BACK)
        assert min(worst) <= MOST


def test_an_engine_that_is_not_there_at_the_start(
    make_daemon: MakeDaemon, tmp_path: Path, redis: Redis
) -> None:
    redis.stop()
    hurt, whole = start(make_daemon, tmp_path, redis)
    with busy(hurt), busy(whole), InTurn(hurt, whole) as pair:
        worst: list[float] = []
        while not worst or (min(worst) > MOST and len(worst) < TRIES):
            pair.ask(SECONDS)
            worst.append(max(pair.ratios(0.99).values()))
        assert min(worst) <= MOST
        redis.start()
        wait_for(lambda: answers(hurt), "the engine", timeout=BACK)
