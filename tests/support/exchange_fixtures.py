"""Fixtures and checks for tests of the exchange file."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.recording_pool import RecordingPool, warnings

from tlsmgr.prng.exchange import SIZE, ExchangeFile
from tlsmgr.prng.timers import RETRY

PERIOD = 3600


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prng_exch"


@pytest.fixture
def exchange(path: Path, pool: RecordingPool) -> Iterator[ExchangeFile]:
    made = ExchangeFile(str(path), PERIOD, pool)
    yield made
    if made._directory >= 0:
        os.close(made._directory)


def assert_fine(exchange: ExchangeFile, path: Path, now: float = 0.0) -> None:
    """An update works and changes the file."""
    before = path.read_bytes() if path.exists() else b""
    assert 1 <= exchange.update(now) <= PERIOD
    after = path.read_bytes()
    assert len(after) >= SIZE
    assert after[:SIZE] != before[:SIZE]
    assert len(set(after[:SIZE])) > 200


def assert_refused(
    exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str], reason: str
) -> None:
    """An update fails with one warning, and comes back soon."""
    assert 1 <= exchange.update(0.0) <= RETRY
    assert warnings(capfd) == [f"PRNG exchange file {path}: {reason}"]
    assert 1 <= exchange.update(1.0) <= RETRY
    assert warnings(capfd) == []
    exchange.save()
    assert warnings(capfd) == [f"PRNG exchange file {path}: not saved: {reason}"]


def assert_healed(exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An update works again, and says so."""
    assert_fine(exchange, path, 2.0)
    assert f"PRNG exchange file {path}: works again" in capfd.readouterr().err
    assert_fine(exchange, path, 2.0)
    assert capfd.readouterr().err == ""
