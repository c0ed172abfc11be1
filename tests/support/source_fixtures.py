"""Fixtures for tests of the external entropy sources, run as the janitor runs them."""

import time
from pathlib import Path

import pytest

from tlsmgr.prng.pool import Pool
from tlsmgr.prng.reseed import POLL, Reseeder
from tlsmgr.prng.sources import TIME_LIMIT

PERIOD = 3600


@pytest.fixture
def socket_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A name that is short enough for an address, in any directory."""
    monkeypatch.chdir(tmp_path)
    return Path("egd")


def finish(reseeder: Reseeder, now: float = 0.0) -> float:
    """Run a reading to its end while the clock stands still; return the delay to the next one."""
    deadline = time.monotonic() + 30
    while (delay := reseeder.run(now)) == POLL:
        assert time.monotonic() < deadline, "the reading does not end"
        time.sleep(0.001)
    return delay


def time_out(reseeder: Reseeder, now: float) -> float:
    """Run a reading to its end while the clock runs; return the time when it ended."""
    while reseeder.run(now) == POLL:
        time.sleep(0.001)
        now += TIME_LIMIT / 10
    return now


def opened(value: str, pool: Pool, count: int = 32) -> Reseeder:
    """A job whose source was opened as at start."""
    reseeder = Reseeder(value, count, PERIOD, pool)
    reseeder.open(0.0)
    return reseeder


def assert_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing was logged."""
    assert capfd.readouterr().err == ""
