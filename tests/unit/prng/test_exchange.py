"""The exchange file: read, stir, write; alone and in the jail."""

import os
import stat
from pathlib import Path

import pytest
from support.exchange_fixtures import PERIOD, assert_fine
from support.exchange_fixtures import exchange as exchange
from support.exchange_fixtures import path as path
from support.own_descriptors import own_descriptors
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_children import run
from support.prng_fixtures import constant_pool
from support.recording_pool import RecordingPool
from support.recording_pool import pool as pool

from tlsmgr.prng.exchange import SIZE, ExchangeFile

NOBODY = 65534


def test_first_update_makes_the_file(
    exchange: ExchangeFile, path: Path, pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_fine(exchange, path)
    assert path.stat().st_size == SIZE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pool.stirred == [b""]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [0, 10, 1023, 1024, 1025, 5000])
def test_old_content_is_stirred_and_replaced(
    exchange: ExchangeFile, path: Path, pool: RecordingPool, size: int
) -> None:
    old = os.urandom(size)
    path.write_bytes(old)
    assert_fine(exchange, path)
    assert pool.stirred == [old[:SIZE]]
    assert path.stat().st_size == max(size, SIZE)
    assert path.read_bytes()[SIZE:] == old[SIZE:]


def test_each_update_stirs_what_the_last_one_wrote(
    exchange: ExchangeFile, path: Path, pool: RecordingPool
) -> None:
    written = []
    for _ in range(5):
        assert_fine(exchange, path)
        written.append(path.read_bytes())
    assert len(set(written)) == 5
    assert pool.stirred[1:] == written[:-1]


def test_what_is_written_is_no_state_and_not_handed_out(
    exchange: ExchangeFile, path: Path, pool: RecordingPool
) -> None:
    exchange.update(0.0)
    content = path.read_bytes()
    for secret in (bytes(pool._area)[8:63], bytes(pool._area)[63:118]):
        assert secret not in content
    assert pool.extract(SIZE) != content


def test_save(
    exchange: ExchangeFile, path: Path, pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    exchange.update(0.0)
    before = path.read_bytes()
    exchange.save()
    assert path.read_bytes() != before
    assert pool.stirred[-1] == before
    assert capfd.readouterr().err == ""


def test_no_name_no_file(
    pool: RecordingPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    exchange = ExchangeFile("", PERIOD, pool)
    assert 1 <= exchange.update(0.0) <= PERIOD
    exchange.save()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_relative_name(
    pool: RecordingPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_fine(ExchangeFile("prng_exch", PERIOD, pool), tmp_path / "prng_exch")


@pytest.mark.parametrize("umask", [0, 0o777])
def test_mode_whatever_the_umask(exchange: ExchangeFile, path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        exchange.update(0.0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_mode_is_put_right(exchange: ExchangeFile, path: Path) -> None:
    path.touch(0o644)
    assert_fine(exchange, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_descriptor_is_left_behind(tmp_path: Path, pool: RecordingPool) -> None:
    """Neither by updates, nor by failures, nor by a directory that is replaced."""
    path = tmp_path / "data" / "prng_exch"
    path.parent.mkdir()
    exchange = ExchangeFile(str(path), PERIOD, pool)
    exchange.update(0.0)
    before = own_descriptors()
    for _ in range(3):
        exchange.update(0.0)
        path.unlink()
        os.mkfifo(path)
        exchange.update(0.0)
        path.unlink()
        path.parent.rmdir()
        exchange.update(0.0)
        path.parent.mkdir()
        exchange.update(0.0)
        exchange.save()
    assert len(own_descriptors()) == len(before)


def test_what_is_written_depends_on_what_was_read(path: Path) -> None:
    """The old content is stirred in before the new one is taken from the pool, not after."""

    def written(old: bytes) -> bytes:
        path.write_bytes(old)
        ExchangeFile(str(path), PERIOD, constant_pool()).update(0.0)
        return path.read_bytes()

    assert written(b"one") == written(b"one")
    assert written(b"one") != written(b"two")


def test_a_process_that_is_forked_later_goes_on(exchange: ExchangeFile, path: Path) -> None:
    assert_fine(exchange, path)
    run(lambda: assert_fine(exchange, path))
    assert_fine(exchange, path)


# The jail


def test_made_anew_from_inside_the_jail(path: Path, tmp_path: Path, pool: RecordingPool) -> None:
    if os.getuid() != 0:
        pytest.skip("chroot(2) needs root")
    jail = tmp_path / "jail"
    jail.mkdir(0o755)
    tmp_path.chmod(0o755)
    os.chown(tmp_path, NOBODY, NOBODY)

    def work() -> None:
        directory = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        exchange = ExchangeFile(str(path), PERIOD, pool, directory)
        os.chroot(jail)
        os.chdir("/")
        os.setuid(NOBODY)
        assert exchange.update(0.0) >= 1
        os.unlink("prng_exch", dir_fd=exchange._directory)
        assert exchange.update(1.0) >= 1
        exchange.save()

    run(work)
    assert path.stat().st_size == SIZE
    assert path.stat().st_uid == NOBODY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
