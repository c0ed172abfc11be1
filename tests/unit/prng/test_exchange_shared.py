"""The exchange file under the lock, shared with other programs and with stock tlsmgr(8)."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.exchange_fixtures import PERIOD, assert_fine, assert_healed
from support.exchange_fixtures import exchange as exchange
from support.exchange_fixtures import path as path
from support.postfix_sandbox import postfix_missing, wait_until
from support.prng_children import fork, kill, reap
from support.prng_children import no_child_is_left as no_child_is_left
from support.recording_pool import RecordingPool, warnings
from support.recording_pool import pool as pool
from support.stock_tlsmgr import StockTlsmgr

from tlsmgr.prng.exchange import LOCK_PATIENCE, LOCK_POLL, LOCK_REPOLL, SIZE, ExchangeFile


class OtherProgram:
    """Another program that has the file locked."""

    def __init__(self, path: Path) -> None:
        reader, writer = os.pipe()

        def work() -> None:
            with open(path, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                os.write(writer, b"x")
                signal.pause()

        self._pid = fork(work)
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        os.close(reader)

    def leave(self) -> None:
        """Let the lock go."""
        kill(self._pid)


def test_locked_for_a_moment(
    exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = OtherProgram(path)
    for tenth in range(50):
        assert exchange.update(tenth / 10) == LOCK_POLL
    assert path.read_bytes() == b""
    other.leave()
    assert_fine(exchange, path, 5.0)
    assert capfd.readouterr().err == ""


def test_locked_for_long(
    exchange: ExchangeFile, path: Path, pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    other = OtherProgram(path)
    start = time.monotonic()
    assert exchange.update(0.0) == LOCK_POLL
    for second in range(300):
        assert exchange.update(LOCK_PATIENCE + second) == LOCK_REPOLL
        pool.extract(32)
    assert time.monotonic() - start < 20  # no update waited
    assert warnings(capfd) == [
        f"PRNG exchange file {path}: locked by another program, update postponed"
    ]
    other.leave()
    assert_healed(exchange, path, capfd)
    other = OtherProgram(path)
    assert exchange.update(2000.0) == LOCK_POLL  # patient again
    assert warnings(capfd) == []
    other.leave()


def test_locked_at_the_end(
    exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = OtherProgram(path)
    start = time.monotonic()
    exchange.save()
    assert time.monotonic() - start < 10
    assert warnings(capfd) == [f"PRNG exchange file {path}: not saved: locked by another program"]
    other.leave()


def test_saved_when_the_lock_is_let_go(
    exchange: ExchangeFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = OtherProgram(path)
    at_nap = SimpleNamespace(sleep=lambda _: other.leave())
    monkeypatch.setattr("tlsmgr.prng.exchange.time", at_nap)
    exchange.save()
    assert path.stat().st_size == SIZE


# Shared with other programs


def share(path: Path, rounds: int) -> None:
    """Read and write under the lock as another program may; find no half of an update."""
    mark = b"\xaa" * SIZE
    with open(path, "r+b", buffering=0) as file:
        for _ in range(rounds):
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            found = file.read(SIZE)
            assert found == mark or mark[:16] not in found
            file.seek(0)
            file.write(mark[:500])
            file.write(mark[500:])
            fcntl.flock(file, fcntl.LOCK_UN)


def test_shared_with_another_process(
    exchange: ExchangeFile, path: Path, pool: RecordingPool
) -> None:
    assert_fine(exchange, path)
    other = fork(lambda: share(path, 3000))
    updates = 0
    while os.waitid(os.P_PID, other, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        delay = exchange.update(0.0)
        assert delay == LOCK_POLL or 1 <= delay <= PERIOD
        updates += delay != LOCK_POLL
    assert reap(other) == 0
    assert updates > 0
    halves = [data for data in pool.stirred if b"\xaa" * 16 in data and set(data) != {0xAA}]
    assert halves == []


def test_two_of_us_share_it(path: Path, tmp_path: Path) -> None:
    def work() -> None:
        exchange = ExchangeFile(str(path), PERIOD, RecordingPool())
        for _ in range(300):
            exchange.update(0.0)

    children = [fork(work) for _ in range(2)]
    assert [reap(pid) for pid in children] == [0, 0]
    assert path.stat().st_size == SIZE
    assert [entry.name for entry in tmp_path.iterdir()] == ["prng_exch"]


@pytest.fixture
def stock() -> Iterator[StockTlsmgr]:
    if reason := postfix_missing():
        pytest.skip(reason)
    with StockTlsmgr(caches=()) as running:
        yield running


def test_stock_reads_ours_and_we_read_stocks(
    stock: StockTlsmgr, pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = stock.data / "prng_exch"
    wait_until(lambda: path.exists() and path.stat().st_size == SIZE, 30)
    stock.stop()
    stocks = path.read_bytes()
    owner = path.stat().st_uid
    exchange = ExchangeFile(str(path), PERIOD, pool)
    assert_fine(exchange, path)
    assert pool.stirred == [stocks]
    assert path.stat().st_uid == owner
    ours = path.read_bytes()
    stock.start()
    wait_until(lambda: path.read_bytes() != ours, 30)
    assert path.stat().st_size == SIZE
    exchange.save()
    stock.stop()
    assert stock.log_lines("fatal|panic|error") == []
    assert warnings(capfd) == []
