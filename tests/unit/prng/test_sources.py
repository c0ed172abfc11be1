"""The job that stirs an external source into the pool: devices and files."""

import os
import random
from pathlib import Path

import pytest
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_children import run
from support.recording_pool import RecordingPool, warnings
from support.recording_pool import pool as pool
from support.source_fixtures import PERIOD, assert_silent, finish, opened, time_out

from tlsmgr.prng.reseed import POLL
from tlsmgr.prng.sources import TIME_LIMIT, Device, Egd, File, source_of
from tlsmgr.prng.timers import RETRY, WARNING_INTERVAL


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("dev:/dev/urandom", Device),
        ("egd:/run/egd", Egd),
        ("/var/lib/entropy", File),
        ("DEV:/dev/urandom", File),
        ("", type(None)),
    ],
)
def test_kind_of_source(value: str, kind: type) -> None:
    assert type(source_of(value)) is kind


def test_no_source(pool: RecordingPool, capfd: pytest.CaptureFixture[str]) -> None:
    reseeder = opened("", pool)
    assert warnings(capfd) == ["no entropy source specified with parameter tls_random_source"]
    assert 1 <= reseeder.run(0.0) <= PERIOD
    assert pool.stirred == []
    assert_silent(capfd)


# Devices


@pytest.mark.parametrize(("count", "length"), [(1, 1), (32, 32), (255, 255), (1000, 255)])
def test_device(
    pool: RecordingPool, capfd: pytest.CaptureFixture[str], count: int, length: int
) -> None:
    reseeder = opened("dev:/dev/urandom", pool, count)
    for _ in range(3):
        assert 1 <= reseeder.run(0.0) <= PERIOD  # a device like this one never makes us wait
    assert [len(data) for data in pool.stirred] == [length] * 3
    assert length == 1 or len(set(pool.stirred)) == 3
    assert_silent(capfd)


def test_the_pool_changes(pool: RecordingPool) -> None:
    state = bytes(pool._area)
    opened("dev:/dev/urandom", pool).run(0.0)
    assert bytes(pool._area) != state


def test_missing_device_is_one_warning_and_heals(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "hwrng"
    reseeder = opened(f"dev:{device}", pool)
    assert 1 <= reseeder.run(0.0) <= RETRY
    assert warnings(capfd) == [
        f"tls_random_source = dev:{device}: "
        f"cannot open entropy device {device}: No such file or directory"
    ]
    device.symlink_to("/dev/urandom")
    assert 1 <= reseeder.run(1.0) <= PERIOD
    assert len(pool.stirred) == 1
    assert f"dev:{device}: works again" in capfd.readouterr().err
    reseeder.run(2.0)
    assert_silent(capfd)


def test_a_lasting_failure_is_logged_every_ten_minutes(
    pool: RecordingPool, capfd: pytest.CaptureFixture[str]
) -> None:
    reseeder = opened("dev:/nonexistent", pool)
    for now in range(0, int(2 * WARNING_INTERVAL) + 1, 20):
        reseeder.run(now)
    assert len(warnings(capfd)) == 3
    assert pool.stirred == []


def test_another_reason_is_logged_at_once(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "device"
    reseeder = opened(f"dev:{device}", pool)
    device.mkdir()
    reseeder.run(1.0)
    first, second = warnings(capfd)
    assert first.endswith("No such file or directory")
    assert second.endswith("Is a directory")


def test_device_that_vanished_is_opened_again(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "hwrng"
    device.write_bytes(b"abc")
    reseeder = opened(f"dev:{device}", pool)
    reseeder.run(0.0)
    device.unlink()
    reseeder.run(1.0)  # there is nothing more behind the old name
    assert warnings(capfd)[0].endswith(f"cannot read from entropy device {device}: end of file")
    device.write_bytes(b"def")
    reseeder.run(2.0)
    assert pool.stirred == [b"abc", b"def"]
    assert f"dev:{device}: works again" in capfd.readouterr().err


def test_device_that_works_stays_open(pool: RecordingPool, tmp_path: Path) -> None:
    device = tmp_path / "hwrng"
    device.write_bytes(b"abcdef")
    reseeder = opened(f"dev:{device}", pool, 3)
    device.unlink()
    reseeder.run(0.0)
    reseeder.run(1.0)
    assert pool.stirred == [b"abc", b"def"]


def test_device_at_its_end(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "device"
    device.touch()
    opened(f"dev:{device}", pool).run(0.0)
    assert warnings(capfd)[0].endswith(f"cannot read from entropy device {device}: end of file")


def test_device_that_makes_us_wait(pool: RecordingPool, tmp_path: Path) -> None:
    device = tmp_path / "fifo"
    os.mkfifo(device)
    reseeder = opened(f"dev:{device}", pool)
    with open(os.open(device, os.O_RDWR), "wb", buffering=0) as writer:
        for now in (0.0, 5.0, 5.0 + TIME_LIMIT - 0.1):
            assert reseeder.run(now) == POLL
        writer.write(b"x" * 8)
        assert reseeder.run(5.0 + TIME_LIMIT - 0.1) > POLL
    assert pool.stirred == [b"x" * 8]


@pytest.mark.parametrize(("kind", "text"), [("dev:", "end of file"), ("", "it is empty")])
def test_a_fifo_without_a_writer_does_not_block(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, text: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def work() -> None:
        reseeder = opened(f"{kind}{fifo}", pool)
        assert 1 <= reseeder.run(0.0) <= RETRY
        assert 1 <= reseeder.run(1.0) <= RETRY

    run(work)
    assert warnings(capfd)[0].endswith(f"{fifo}: {text}")


def test_device_that_makes_us_wait_for_too_long(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "fifo"
    os.mkfifo(device)
    reseeder = opened(f"dev:{device}", pool)
    with open(os.open(device, os.O_RDWR), "wb", buffering=0):
        assert TIME_LIMIT <= time_out(reseeder, 0.0) <= 1.2 * TIME_LIMIT
    assert warnings(capfd)[0].endswith(f"cannot read from entropy device {device}: timed out")


@pytest.mark.parametrize(
    ("content", "text"),
    [(bytes(255), "is stuck"), (bytes(100) + random.Random(1).randbytes(100), "is stuck")],
)
def test_stuck_device(
    pool: RecordingPool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    content: bytes,
    text: str,
) -> None:
    device = tmp_path / "device"
    device.write_bytes(content)
    value = f"dev:{device}"
    assert 1 <= opened(value, pool, 255).run(0.0) <= RETRY
    assert f"{value}: {text}" in warnings(capfd)[0]
    assert pool.stirred == []


# Files


@pytest.mark.parametrize("size", [1, 31, 32, 33, 100_000])
def test_file(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str], size: int
) -> None:
    file = tmp_path / "entropy"
    file.write_bytes(os.urandom(size))
    reseeder = opened(str(file), pool)
    assert 1 <= finish(reseeder) <= PERIOD
    assert pool.stirred == [file.read_bytes()[:32]]
    assert_silent(capfd)


def test_file_without_a_cap(pool: RecordingPool, tmp_path: Path) -> None:
    file = tmp_path / "entropy"
    file.write_bytes(os.urandom(300_000))
    finish(opened(str(file), pool, 250_000))
    assert pool.stirred == [file.read_bytes()[:250_000]]


def test_file_is_read_at_each_reseed(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, renewed = tmp_path / "entropy", tmp_path / "renewed"
    reseeder = opened(str(file), pool)
    assert warnings(capfd)[0].endswith(
        f"cannot open entropy file {file}: No such file or directory"
    )
    contents = [b"first", b"second" * 3, b"second" * 3]
    for content in contents:
        renewed.write_bytes(content)
        renewed.rename(file)
        finish(reseeder)
    assert pool.stirred == contents


def test_file_is_not_tested(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "entropy"
    file.write_bytes(bytes(1000))
    reseeder = opened(str(file), pool, 1000)
    for _ in range(3):
        finish(reseeder)
    assert pool.stirred == [bytes(1000)] * 3
    assert_silent(capfd)


def test_file_that_was_removed_is_read_on(pool: RecordingPool, tmp_path: Path) -> None:
    file = tmp_path / "entropy"
    file.write_bytes(b"content")
    reseeder = opened(str(file), pool)
    file.unlink()  # or out of reach, as it may be in the jail
    finish(reseeder)
    finish(reseeder)
    assert pool.stirred == [b"content"] * 2


@pytest.mark.parametrize(("name", "text"), [("empty", "it is empty"), (".", "Is a directory")])
def test_bad_file(
    pool: RecordingPool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    text: str,
) -> None:
    (tmp_path / "empty").touch()
    file = tmp_path / name
    finish(opened(str(file), pool))
    assert warnings(capfd) == [
        f"tls_random_source = {file}: cannot read from entropy file {file}: {text}"
    ]


def test_name_with_a_zero_byte(pool: RecordingPool, capfd: pytest.CaptureFixture[str]) -> None:
    for value in ("a\0b", "dev:a\0b", "egd:a\0b"):
        opened(value, pool).run(0.0)
        assert len(warnings(capfd)) == 1
