"""A session file gets its disk space when it is made; later a full disk has no effect on it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cache_files import MIB, CacheFiles, in_child
from support.cache_fixtures import NOW, T, lookup, update
from support.small_disks import fill_up, mounted

from tlsmgr.sessions import file as file_module
from tlsmgr.sessions.cache import Change, SessionCache
from tlsmgr.sessions.file import StoreError, map_size_for
from tlsmgr.sessions.store import create
from tlsmgr.sessions.sweep import Sweep

TMPFS, EXT4, XFS, OVERLAY = 0x01021994, 0xEF53, 0x58465342, 0x794C7630


@pytest.fixture
def cannot_allocate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file system here were a copy-on-write one."""
    monkeypatch.setattr(file_module, "COPY_ON_WRITE", {TMPFS, EXT4, XFS, OVERLAY})


def keeps(cache: SessionCache, cache_id: bytes, size: int = 1200) -> bool:
    """Store a session; return whether it is there then."""
    assert cache.apply([Change(cache_id, bytes(size))], NOW) == [True]
    session = lookup(cache, cache_id)
    assert session in (None, bytes(size))
    return session is not None


# ----------------------------------------------------------------------------------- the allocation


def test_all_of_the_file_is_allocated(tmp_path: Path) -> None:
    files = CacheFiles(tmp_path, size_limit=64 * MIB)
    mark = files.file.mark
    assert mark.is_allocated
    assert mark.size == files.path.stat().st_size == map_size_for(64 * MIB)
    assert files.path.stat().st_blocks * 512 >= mark.size
    blocks = files.path.stat().st_blocks
    cache = files.cache()
    assert all(keeps(cache, b"%d" % number) for number in range(2000))
    assert files.path.stat().st_blocks == blocks
    files.remove()


def test_a_small_disk_gets_a_smaller_file(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The length is halved until it fits, and the limit with it; one line says so."""
    files = CacheFiles(small_disk, size_limit=64 * MIB)
    mark = files.file.mark
    wanted = map_size_for(64 * MIB)
    assert mark.is_allocated
    assert 2 * MIB < mark.size == files.path.stat().st_size <= 3 * MIB
    assert abs(mark.size - wanted // 32) < 65536
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "warning: smtp.sessions: wanted 96 MiB of disk space, got 3 MiB;" in lines[0]
    fill_up(small_disk)

    def work() -> None:
        cache = files.cache()
        for number in range(3000):
            assert keeps(cache, b"%d" % number)
        kept = [number for number in range(3000) if lookup(cache, b"%d" % number)]
        assert kept == list(range(kept[0], 3000)), "the oldest went"
        assert 64 * mark.size // 96 >= cache.size()[1] > mark.size // 2
        for number in range(20):
            before = cache.size()[0]
            keeps(cache, b"large %d" % number, 300_000)  # if there are enough pages in a row
            assert cache.size()[0] > before - 400, "the others stay"
        for number in range(3000):
            assert keeps(cache, b"again %d" % number)

    in_child(work)
    assert not files.file.mark.is_damaged
    files.remove()


def test_what_was_allocated_in_part_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ext4 leaves it when it fails in the middle."""
    lengths = []
    allocate = file_module._fallocate

    def fail_in_the_middle(descriptor: int, size: int) -> bool:
        lengths.append(os.fstat(descriptor).st_size)
        if size > 8 * MIB:
            allocate(descriptor, size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")
        return allocate(descriptor, size)

    monkeypatch.setattr(file_module, "_fallocate", fail_in_the_middle)
    files = CacheFiles(tmp_path, size_limit=64 * MIB)
    assert len(set(lengths)) == 1
    assert 4 * MIB < files.file.mark.size <= 8 * MIB
    assert files.path.stat().st_blocks * 512 < 9 * MIB
    files.remove()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the smallest file, and not for two."""
    with mounted(tmp_path / "tiny", "1200k") as disk:
        yield disk


def test_the_smallest_file(tiny_disk: Path) -> None:
    """With less disk space than that there is none, and nothing of it is left."""
    files = CacheFiles(tiny_disk, size_limit=64 * MIB)
    assert files.file.mark.size == MIB
    cache = files.cache()
    assert all(keeps(cache, b"%d" % number) for number in range(2000))
    files.close()
    os.close(files.claim)
    before = files.file.mark.inode
    with pytest.raises(StoreError, match="No space left on device") as error:
        create(files.file)
    assert not error.value.damaged
    assert sorted(os.listdir(tiny_disk)) == ["smtp.sessions", "smtp.sessions-lock"]
    files.file = files.file._replace(name="another")
    with pytest.raises(StoreError, match="No space left on device"):
        create(files.file)
    assert sorted(os.listdir(tiny_disk)) == ["smtp.sessions", "smtp.sessions-lock"]
    files.file = files.file._replace(name="smtp.sessions")
    assert files.file.mark.inode == before
    (tiny_disk / "smtp.sessions").unlink()
    files.claim = create(files.file)
    assert keeps(files.cache(), b"id")
    files.remove()


@pytest.mark.parametrize("free_pages", [0, 1, 4, 16, 17, 18, 19, 24])
def test_on_a_full_disk_nothing_is_made_and_nobody_dies(small_disk: Path, free_pages: int) -> None:
    """LMDB maps the file and its lock table: it must not touch them where they have no blocks."""
    directory = small_disk / "sessions"
    directory.mkdir()
    filler = fill_up(small_disk)
    os.truncate(filler, filler.stat().st_size - 4096 * free_pages)

    def make_it() -> str:
        with pytest.raises(StoreError) as error:
            CacheFiles(directory)
        assert not error.value.damaged
        return str(error.value)

    assert "No space left on device" in in_child(make_it)
    assert os.listdir(directory) == []
    filler.unlink()
    files = CacheFiles(directory)
    assert keeps(files.cache(), b"id")
    files.remove()


def test_a_sweep_on_a_full_disk(small_disk: Path) -> None:
    files = CacheFiles(small_disk, size_limit=64 * MIB, timeout=T)
    update(files.cache(), *((b"%d" % number, bytes(1200)) for number in range(600)))
    files.close()
    fill_up(small_disk)
    sweep = Sweep(files.rules, files.shared, files.file, lambda _: None)
    while sweep.run(float(NOW + T + 1)) < T:
        pass
    assert sweep.deleted == 600
    assert files.cache().size()[0] == 0
    assert not files.file.mark.is_damaged
    files.remove()


# --------------------------------------------------------------- file systems that can't allocate


@pytest.mark.usefixtures("cannot_allocate")
def test_a_copy_on_write_file_system(tmp_path: Path) -> None:
    """The file is not written through the map; it is as long as the map all the same."""
    files = CacheFiles(tmp_path)
    assert not files.file.mark.is_allocated
    assert files.path.stat().st_size == files.file.mark.size == map_size_for(16 * MIB)
    assert files.path.stat().st_blocks * 512 < MIB
    cache = files.cache()
    assert all(keeps(cache, b"%d" % number) for number in range(500))
    assert not cache._store._file.env.flags()["writemap"]  # type: ignore[union-attr]
    files.remove()


def test_a_file_system_without_fallocate(tmp_path: Path) -> None:
    directory = tmp_path / "ramfs"
    directory.mkdir()
    command = ["mount", "-t", "ramfs", "ramfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system: needs root")
    try:
        files = CacheFiles(directory)
        assert not files.file.mark.is_allocated
        cache = files.cache()
        assert all(keeps(cache, b"%d" % number) for number in range(500))
        files.remove()
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.usefixtures("cannot_allocate")
def test_a_full_disk_there_is_an_error_and_no_damage(small_disk: Path) -> None:
    """Without blocks behind the map nobody is killed by SIGBUS, and it heals."""
    files = CacheFiles(small_disk, size_limit=64 * MIB)

    def work() -> tuple[list[bool], list[bool]]:
        cache = files.cache()
        assert all(keeps(cache, b"%d" % number) for number in range(300))
        filler = fill_up(small_disk)
        full = [keeps(cache, b"full %d" % number) for number in range(500)]
        assert lookup(cache, b"299") == bytes(1200), "what was stored before is found"
        filler.unlink()
        return full, [keeps(cache, b"free %d" % number) for number in range(300)]

    full, free = in_child(work)
    assert not all(full), "there was still room"
    assert all(free)
    assert not files.file.mark.is_damaged
    files.remove()
