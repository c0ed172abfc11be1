"""The secret file on the disk: who may own it, how it is made and replaced."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from support.farm_secret import EXAMPLE, EXAMPLE_DATE, EXAMPLE_KEY, day, write

from tlsmgr.farm import secret_file
from tlsmgr.farm.secret import HEADER, BadSecret, Secret, advance

FIRST = day(EXAMPLE_DATE)
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of a file")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "farm.secret", EXAMPLE)


def refusal(path: Path, owners: tuple[int, ...] = ()) -> str:
    with pytest.raises(BadSecret) as error:
        secret_file.read(str(path), FIRST, owners)
    return str(error.value)


def test_a_good_file(path: Path) -> None:
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert secret_file.read(str(path), FIRST) == [Secret(FIRST, EXAMPLE_KEY)]


def test_a_link_to_a_good_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    assert secret_file.read(str(tmp_path / "link"), FIRST) == [Secret(FIRST, EXAMPLE_KEY)]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644])
def test_others_have_access(path: Path, mode: int) -> None:
    path.chmod(mode)
    reason = f"other users have access to it (mode {mode:04o}); run chmod 600"
    assert refusal(path) == reason


@needs_root
def test_the_owner(path: Path) -> None:
    os.chown(path, NOBODY, 0)
    reason = f"owned by user ID {NOBODY}, which is neither root nor mail_owner"
    assert refusal(path) == refusal(path, (1,)) == reason
    assert secret_file.read(str(path), FIRST, (NOBODY,)) == [Secret(FIRST, EXAMPLE_KEY)]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == os.strerror(errno.ENOENT)
    assert refusal(tmp_path) == os.strerror(errno.EISDIR)
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert refusal(tmp_path / "fifo") == "not a regular file"
    assert refusal(Path("/dev/null")) == "not a regular file"


def test_a_large_file(path: Path) -> None:
    write(path, f"#{'x' * secret_file.LARGEST}\n{EXAMPLE}")
    assert refusal(path) == f"larger than {secret_file.LARGEST} bytes"


def test_what_is_in_it_counts(path: Path) -> None:
    write(path, "rubbish\n")
    assert refusal(path) == "line 1: expected a date and a secret in base64"


def test_a_new_file(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        secret_file.create(str(path), FIRST)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (one,), (other,) = (secret_file.read(str(path), FIRST) for path in paths)
    assert one.day == other.day == FIRST
    assert one.key != other.key
    assert paths[0].read_text().startswith(HEADER)


def test_a_new_file_replaces_nothing(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for existing in (path, tmp_path / "link"):
        with pytest.raises(BadSecret, match=os.strerror(errno.EEXIST)):
            secret_file.create(str(existing), FIRST)
    assert path.read_text() == EXAMPLE
    assert not (tmp_path / "nowhere").exists()


@needs_root
def test_replacing_keeps_owner_mode_and_link(path: Path, tmp_path: Path) -> None:
    os.chown(path, NOBODY, 1)
    (tmp_path / "link").symlink_to(path)
    advanced = advance(secret_file.read(str(path), FIRST, (NOBODY,)), FIRST + 9)
    secret_file.replace(str(tmp_path / "link"), advanced)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, 1, 0o600)
    assert (tmp_path / "link").is_symlink()
    assert secret_file.read(str(path), FIRST + 9, (NOBODY,)) == advanced
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "link"]


@pytest.mark.parametrize("fails", ["rename", "fsync"])
def test_a_failure_leaves_the_old_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(BadSecret, match=os.strerror(errno.ENOSPC)):
        secret_file.replace(str(path), [Secret(FIRST, bytes(range(32)))])
    assert path.read_text() == EXAMPLE
    assert list(tmp_path.iterdir()) == [path]
