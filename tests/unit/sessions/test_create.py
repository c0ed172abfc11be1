"""Session files are made afresh, claimed and opened; what is none of ours is left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from support.cache_files import MIB, CacheFiles, in_child
from support.own_descriptors import own_descriptors
from support.store_records import digest, put, record
from support.store_records import files as files

from tlsmgr.sessions.store import (
    Replaced,
    Store,
    StoreError,
    StoreFile,
    create,
    inode_of,
    remove,
)


def test_a_new_file_is_private_and_empty(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files = CacheFiles(tmp_path)
        files.store()
        assert files.path.stat().st_mode & 0o7777 == 0o600
        assert sorted(os.listdir(tmp_path)) == ["smtp.sessions", "smtp.sessions-lock"]
        for name in os.listdir(tmp_path):
            assert (tmp_path / name).stat().st_mode & 0o7777 == 0o600
        assert files.store().read_from(b"", 10) == ([], b"")
    finally:
        os.umask(before)
    files.remove()


def test_create_makes_the_file_afresh_and_leaves_the_old_one_to_its_readers(
    files: CacheFiles, tmp_path: Path
) -> None:
    put(store := files.store(), 1, 2)
    before = inode_of(files.file)
    os.close(files.claim)
    (tmp_path / "smtp.sessions.new").write_text("a leftover of a start that was killed")
    (tmp_path / "smtp.sessions.new-lock").write_text("the same")
    files.claim = create(files.file)
    assert inode_of(files.file) not in (None, before)
    assert store.read(digest(1)) == record(1)
    with pytest.raises(Replaced):
        put(store, 3)
    assert sorted(os.listdir(tmp_path)) == ["smtp.sessions"]
    assert files.store().read(digest(1)) is None


def test_the_claim_keeps_another_daemon_out(files: CacheFiles) -> None:
    put(files.store(), 1)
    files.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="unable to get exclusive lock on smtp"):
            create(files.file)
    assert in_child(lambda: Store(files.file).read(digest(1))) == record(1)
    assert os.fstat(files.claim).st_ino == inode_of(files.file)


def test_the_claim_ends_with_the_process(files: CacheFiles) -> None:
    os.close(files.claim)
    in_child(lambda: create(files.file))
    files.claim = create(files.file)


@pytest.mark.parametrize("what", ["link", "directory", "fifo"])
def test_what_is_no_file_is_left_alone(tmp_path: Path, what: str) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    name = tmp_path / "smtp.sessions"
    if what == "link":
        name.symlink_to(target)
    elif what == "directory":
        name.mkdir()
    else:
        os.mkfifo(name)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    file = StoreFile(descriptor, "smtp.sessions", MIB)

    def tries() -> int:
        failures = 0
        for act in (lambda: create(file), lambda: Store(file)):
            try:
                act()
            except StoreError:
                failures += 1
        return failures

    # A FIFO may be replaced, or refused, but must keep nobody waiting.
    assert in_child(tries) == 2 or what == "fifo"
    assert target.read_text() == "precious"
    os.close(descriptor)


def test_no_room_and_no_directory_are_store_errors(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    file = StoreFile(descriptor, "x.sessions", MIB)
    tmp_path.rmdir()
    with pytest.raises(StoreError, match="No such file"):
        create(file)
    with pytest.raises(StoreError):
        Store(file)
    assert inode_of(file) is None
    remove(file)
    os.close(descriptor)


def test_opening_makes_nothing(files: CacheFiles, tmp_path: Path) -> None:
    remove(files.file)
    with pytest.raises(StoreError):
        Store(files.file)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b"x", b"text\n" * 5000, bytes(65536), os.urandom(65536)], ids=range(5)
)
def test_rubbish_is_a_store_error(files: CacheFiles, content: bytes) -> None:
    files.path.write_bytes(content)
    before = len(own_descriptors())
    with pytest.raises(StoreError):
        Store(files.file)
    assert len(own_descriptors()) == before


def test_the_working_directory_stays(files: CacheFiles) -> None:
    before = os.getcwd()
    files.store()
    with pytest.raises(StoreError):
        Store(files.file._replace(name="missing"))
    assert os.getcwd() == before


def test_making_it_afresh_while_others_open_it(tmp_path: Path) -> None:
    """Who opens by name gets one file or the other, whole, with room on the disk behind its map."""
    files = CacheFiles(tmp_path, size_limit=64 * MIB)

    def come_and_go() -> int:
        os.close(files.claim)
        opened = 0
        while os.getppid() == parent:
            with contextlib.suppress(StoreError):
                store = Store(files.file)
                put(store, *range(opened * 20 + 1, opened * 20 + 21))
                store.close()
                opened += 1
        return opened

    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            come_and_go()
        finally:
            os._exit(0)
    try:
        for _ in range(200):
            os.close(files.claim)
            files.claim = create(files.file)
            assert files.file.mark is not None
            inode, granted = files.file.mark
            status = files.path.stat()
            assert status.st_ino == inode
            assert status.st_size >= granted > 0
            assert status.st_blocks * 512 >= granted
    finally:
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert in_child(lambda: Store(files.file).read(bytes(16))) is None
    files.remove()


def test_a_claim_that_is_let_go_of_in_a_moment(files: CacheFiles) -> None:
    """By a process that was forked a moment ago, and has not closed what it does not need."""
    pid = os.fork()
    if pid == 0:
        time.sleep(0.02)
        os._exit(0)
    os.close(files.claim)
    files.claim = create(files.file)
    os.waitpid(pid, 0)
    with pytest.raises(StoreError, match="unable to get exclusive lock"):
        create(files.file)
