"""Session files are made, claimed and opened; files of others are left alone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.cache_files import MIB, CacheFiles, in_child
from support.own_descriptors import own_descriptors
from support.store_records import digest, put, record
from support.store_records import files as files

from tlsmgr.sessions import lmdb_file
from tlsmgr.sessions.file import (
    FileMark,
    StoreError,
    StoreFile,
    StoreLost,
    inode_of,
    is_claimed,
    is_lost,
    remove,
)
from tlsmgr.sessions.store import Store, create


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


def test_create_makes_a_new_file_and_ends_the_use_of_the_old_one(
    files: CacheFiles, tmp_path: Path
) -> None:
    """Not that of the pages that are mapped: nobody may be hurt by the end of the file."""
    put(store := files.store(), 1, 2)
    assert store.read(digest(1)) == record(1)
    before = inode_of(files.file)
    os.close(files.claim)
    (tmp_path / "smtp.sessions.new").write_text("a leftover of a start that was killed")
    (tmp_path / "smtp.sessions.new-lock").write_text("the same")
    files.claim = create(files.file)
    assert inode_of(files.file) not in (None, before)
    assert store.read(digest(2)) == record(2), "this one began before"
    store.end_reading()
    with pytest.raises(StoreLost):
        store.read(digest(1))
    for _ in range(2):  # it leaves the writers' lock free
        with pytest.raises(StoreLost):
            put(store, 3)
    assert sorted(os.listdir(tmp_path)) == ["smtp.sessions", "smtp.sessions-lock"]
    assert files.store().read(digest(1)) is None


def test_the_claim_keeps_another_daemon_out(files: CacheFiles) -> None:
    put(files.store(), 1)
    files.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="unable to get exclusive lock on smtp"):
            create(files.file)
    assert in_child(lambda: Store(files.file).read(digest(1))) == record(1)
    assert os.fstat(files.claim).st_ino == inode_of(files.file)


def test_another_process_sees_whether_there_is_a_claim(files: CacheFiles) -> None:
    """A test start beside a daemon leaves its files alone, and takes no claim by looking."""
    assert in_child(lambda: is_claimed(files.file))
    os.close(files.claim)
    for _ in range(2):
        assert not in_child(lambda: is_claimed(files.file))
    files.claim = create(files.file)
    assert in_child(lambda: is_claimed(files.file))
    assert not is_claimed(files.file._replace(name="none"))
    assert not (files.path.parent / "none").exists()


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
    file = StoreFile(descriptor, "smtp.sessions", MIB, FileMark())

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
    file = StoreFile(descriptor, "x.sessions", MIB, FileMark())
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


@pytest.mark.parametrize("what", ["removed", "replaced", "a file that is empty"])
def test_a_lock_table_that_is_not_its_own_is_refused(files: CacheFiles, what: str) -> None:
    """Two processes with two lock tables would write to one file at the same time."""
    lock_table = files.path.with_name("smtp.sessions-lock")
    stored, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            put(store := Store(files.file), 1, 2)
            os.write(stored[1], b"x")
            os.read(go[0], 1)
            put(store, 3)
            os._exit(store.read(digest(1)) != record(1))
        finally:
            os._exit(1)
    assert os.read(stored[0], 1) == b"x"
    content = lock_table.read_bytes()
    lock_table.unlink()
    if what != "removed":
        lock_table.write_bytes(content if what == "replaced" else b"")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"smtp\.sessions-lock") as error:
            Store(files.file)
        assert error.value.damaged
    assert is_lost(files.file)
    os.write(go[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0, "a process that has both open goes on"
    os.close(files.claim)
    files.claim = create(files.file)
    assert not is_lost(files.file)
    put(store := files.store(), 4)
    assert store.read(digest(1)) is None
    assert store.read(digest(4)) == record(4)
    for descriptor in (*stored, *go):
        os.close(descriptor)


def test_a_copy_in_place_of_the_file_is_refused(files: CacheFiles, tmp_path: Path) -> None:
    """It has the same length, and the lock table is the right one."""
    put(files.store(), 1)
    files.close()
    copy = tmp_path / "copy"
    copy.write_bytes(files.path.read_bytes())
    copy.rename(files.path)
    with pytest.raises(StoreError, match=r"smtp\.sessions was replaced") as error:
        Store(files.file)
    assert error.value.damaged
    assert is_lost(files.file)


def test_a_file_that_can_not_be_looked_at_now_is_not_lost(
    files: CacheFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def have_no_memory(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", have_no_memory)
        assert not is_lost(files.file)
        with pytest.raises(StoreError, match="Cannot allocate memory") as error:
            Store(files.file)
        assert not error.value.damaged
    remove(files.file)
    assert is_lost(files.file)


def test_a_lock_table_that_is_removed_while_the_file_is_opened(
    files: CacheFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB would make another one."""
    put(files.store(), 1)
    files.close()
    opening = lmdb_file._open_environment

    def remove_and_open(*arguments: Any) -> Any:
        files.path.with_name("smtp.sessions-lock").unlink()
        return opening(*arguments)

    monkeypatch.setattr(lmdb_file, "_open_environment", remove_and_open)
    before = len(own_descriptors())
    with pytest.raises(StoreError, match=r"smtp\.sessions-lock was replaced") as error:
        Store(files.file)
    assert error.value.damaged
    assert len(own_descriptors()) == before


def test_a_lock_table_that_was_put_back_is_refused(files: CacheFiles, tmp_path: Path) -> None:
    """The name is right again, but the descriptor that is locked is that of another file."""
    lock_table, elsewhere = tmp_path / "smtp.sessions-lock", tmp_path / "elsewhere"
    lock_table.rename(elsewhere)
    lock_table.write_bytes(elsewhere.read_bytes())
    opening = os.open

    def open_and_put_back(name: Any, *arguments: Any, **options: Any) -> int:
        descriptor = opening(name, *arguments, **options)
        if name == "smtp.sessions-lock":
            elsewhere.rename(lock_table)
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_and_put_back)
        with pytest.raises(StoreError, match=r"smtp\.sessions-lock was replaced"):
            Store(files.file)
    put(files.store(), 1)


def test_making_new_ones_while_others_open_them(tmp_path: Path) -> None:
    """A process that opens it by name gets one of the two files, whole, with its disk space."""
    files = CacheFiles(tmp_path, size_limit=64 * MIB)

    closed = os.pipe()

    def come_and_go() -> int:
        os.close(files.claim)
        os.write(closed[1], b"x")
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
        assert os.read(closed[0], 1) == b"x"
        for _ in range(200):
            os.close(files.claim)
            files.claim = create(files.file)
            mark = files.file.mark
            status = files.path.stat()
            assert (status.st_ino, status.st_size) == (mark.inode, mark.size)
            assert status.st_blocks * 512 >= mark.size == files.file.map_size
            assert mark.is_allocated
    finally:
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert in_child(lambda: Store(files.file).read(bytes(16))) is None
    files.remove()
    for descriptor in closed:
        os.close(descriptor)


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
