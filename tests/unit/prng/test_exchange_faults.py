"""Faults of the exchange file: a warning, no stall, and healed when possible."""

import fcntl
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
from support.exchange_fixtures import PERIOD, assert_fine, assert_healed, assert_refused
from support.exchange_fixtures import exchange as exchange
from support.exchange_fixtures import path as path
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_children import run
from support.recording_pool import RecordingPool, warnings
from support.recording_pool import pool as pool
from support.small_disks import fill_up

from tlsmgr.prng.exchange import LOCK_POLL, ExchangeFile
from tlsmgr.prng.pool import EntropyError
from tlsmgr.prng.timers import RETRY

NOBODY = 65534


def test_removed(exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_fine(exchange, path)
    path.unlink()
    assert_fine(exchange, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert warnings(capfd) == [f"PRNG exchange file {path} was removed; created a new one"]


def test_removed_between_opening_and_locking(
    exchange: ExchangeFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_fine(exchange, path)
    flock = fcntl.flock

    def slow_flock(fd: int, how: int) -> None:
        path.unlink(missing_ok=True)
        flock(fd, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", slow_flock)
        assert exchange.update(0.0) == LOCK_POLL
    assert_fine(exchange, path)


@pytest.mark.parametrize("target", ["precious", "nothing"])
def test_symbolic_link_is_not_followed(
    exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str], target: str
) -> None:
    precious = path.with_name("precious")
    precious.write_bytes(b"precious")
    path.symlink_to(path.with_name(target))
    assert_refused(exchange, path, capfd, "it is a symbolic link")
    assert precious.read_bytes() == b"precious"
    assert not path.with_name("nothing").exists()
    path.unlink()
    assert_healed(exchange, path, capfd)


def test_directory_is_refused(
    exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path.mkdir()
    assert_refused(exchange, path, capfd, "Is a directory")
    path.rmdir()
    assert_healed(exchange, path, capfd)
    path.unlink()
    path.mkdir()
    exchange.update(3.0)
    assert warnings(capfd) == [f"PRNG exchange file {path}: Is a directory"], "it is a new failure"


def test_fifo_is_refused(
    exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(path)
    run(lambda: exchange.update(0.0))  # it has no writer, and does not block
    assert warnings(capfd) == [f"PRNG exchange file {path}: it is not a regular file"]
    assert_refused(exchange, path, capfd, "it is not a regular file")
    path.unlink()
    assert_healed(exchange, path, capfd)


def test_a_lease_of_another_program_does_not_block(
    exchange: ExchangeFile, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Opening a file under a lease waits for 45 s where it may wait (fcntl(2), F_SETLEASE)."""
    path.touch()
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with open(path, "rb+", buffering=0) as other:
        try:
            fcntl.fcntl(other, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no leases on this file system: {error.strerror}")
        run(lambda: exchange.update(0.0))
    signal.signal(signal.SIGIO, before)
    assert warnings(capfd)[0].endswith("Resource temporarily unavailable")
    assert_fine(exchange, path)


def test_no_directory(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data" / "prng_exch"
    exchange = ExchangeFile(str(path), PERIOD, pool)
    assert 1 <= exchange.update(1.0) <= RETRY
    assert warnings(capfd) == [f"PRNG exchange file {path}: No such file or directory"]
    path.parent.mkdir()
    assert_healed(exchange, path, capfd)


def test_directory_is_replaced(
    tmp_path: Path, pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data" / "prng_exch"
    path.parent.mkdir()
    exchange = ExchangeFile(str(path), PERIOD, pool)
    assert_fine(exchange, path)
    path.unlink()
    path.parent.rmdir()
    assert 1 <= exchange.update(0.0) <= RETRY
    path.parent.mkdir()
    assert_healed(exchange, path, capfd)


def test_unwritable(
    path: Path,
    pool: RecordingPool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path.parent.chmod(0o777)
    path.touch(0o400)
    monkeypatch.chdir(path.parent)
    relative = Path(path.name)  # nobody may not pass through the directories above

    def work() -> None:
        if os.getuid() == 0:
            os.setuid(NOBODY)
        exchange = ExchangeFile(str(relative), PERIOD, pool)
        exchange.update(0.0)
        exchange.save()
        relative.unlink()
        assert_fine(exchange, relative, 1.0)

    run(work)
    assert warnings(capfd) == [
        "PRNG exchange file prng_exch: Permission denied",
        "PRNG exchange file prng_exch: not saved: Permission denied",
    ]


def test_limit_of_file_size(
    path: Path, pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        exchange = ExchangeFile(str(path), PERIOD, pool)
        for limit in (100, 0):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            assert 1 <= exchange.update(0.0) <= RETRY
            assert path.stat().st_size == limit
            path.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert_fine(exchange, path)

    run(work)
    # Standard error is a file too, so what is logged under the limit may be lost.
    assert "works again" in capfd.readouterr().err


def test_full_disk(
    small_disk: Path, pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    filler, path = fill_up(small_disk), small_disk / "prng_exch"
    exchange = ExchangeFile(str(path), PERIOD, pool)
    assert_refused(exchange, path, capfd, "No space left on device")
    assert len(pool.extract(32)) == 32
    filler.unlink()
    assert_healed(exchange, path, capfd)


def test_no_entropy(
    exchange: ExchangeFile, path: Path, pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    exchange.update(0.0)
    before = path.read_bytes()
    pool.broken = True
    with pytest.raises(EntropyError):
        pool.extract(1)
    reason = "the kernel's random generator fails: Function not implemented"
    assert_refused(exchange, path, capfd, reason)
    assert path.read_bytes() == before
    pool.broken = False
    assert_healed(exchange, path, capfd)
