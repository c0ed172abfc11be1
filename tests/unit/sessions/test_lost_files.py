"""A file that was made again, or that another process found damaged: nobody uses the old one."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

import pytest
from support.cache_files import CacheFiles, in_child
from support.cache_fixtures import NOW, MakeFiles, delete, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.cache import Change, SessionCache
from tlsmgr.sessions.file import CLOSED, FileMark, StoreFile, StoreLost
from tlsmgr.sessions.seal import Nonces
from tlsmgr.sessions.store import Store, create


def make_again(files: CacheFiles) -> None:
    """What the janitor does, in the same order."""
    files.shared.renew(os.urandom(64))
    os.close(files.claim)
    files.claim = create(files.file)


def answers(cache: SessionCache) -> list[bool]:
    """Return what is answered to an update and a delete."""
    return cache.apply([Change(b"id", b"another"), Change(b"id", None)], NOW)


def report(files: CacheFiles) -> None:
    files.file.mark.report_damage(files.file.mark.inode)


def test_a_worker_with_an_older_file_finds_and_stores_nothing(make_files: MakeFiles) -> None:
    """An update there would be lost: it is not answered as done."""
    files = make_files()
    files.directory = os.dup(files.directory)
    cache = files.cache()
    update(cache, (b"id", b"session"))
    make_again(files)
    cache.own_directory()
    assert answers(cache) == [False, False]
    assert lookup(cache, b"id") is None
    cache.reopen()
    assert answers(cache) == [False, False], "it has closed the directory"


def test_a_lookup_may_be_the_first_to_notice(make_files: MakeFiles) -> None:
    files = make_files()
    cache = files.cache()
    update(cache, (b"id", b"session"))
    assert lookup(cache, b"id") == b"session"
    make_again(files)
    assert lookup(cache, b"id") is None
    assert answers(cache) == [False, False]
    cache.reopen()
    assert answers(cache) == [True, True], "it still has the directory"


def test_a_worker_that_is_writing_many_notices_in_between(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it stored before is lost as well, so nothing is answered as done."""
    files = make_files(entry_limit=3)
    cache = files.cache()
    evict = SessionCache._evict

    def and_lose(self: SessionCache, batch: object) -> bool:
        monkeypatch.setattr(SessionCache, "_evict", evict)
        make_again(files)
        return True

    monkeypatch.setattr(SessionCache, "_evict", and_lose)
    assert cache.apply([Change(b"id", b"session")], NOW) == [False]


def test_nobody_uses_a_file_that_was_found_damaged(
    make_files: MakeFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody can find an older session, so that updates are answered as done."""
    files = make_files()
    cache = files.cache()
    update(cache, (b"id", b"session"))
    report(files)
    assert lookup(cache, b"id") is None
    assert answers(cache) == [True, False]
    cache.reopen()
    assert lookup(cache, b"id") is None
    with pytest.raises(StoreLost, match="another file is in its place"):
        Store(files.file)  # `tlsmgrctl list` shows the text
    assert capfd.readouterr().err == "", "who found the damage has logged it"
    make_again(files)
    assert answers(cache) == [False, False]
    cache.reopen()
    update(cache, (b"id", b"session"))
    assert lookup(cache, b"id") == b"session"


def test_a_lost_file_leaves_the_writers_lock_free(make_files: MakeFiles) -> None:
    files = make_files()
    store = files.store()
    report(files)
    for call in (store.writing, lambda: store.read(bytes(16)), store.usage):
        with pytest.raises(StoreLost):
            call()

    def others_can_write() -> bool:
        files.file.mark.record(files.file.mark.inode, *mark)
        update(SessionCache(files.rules, files.shared, files.file, Nonces(2)), (b"id", b"s"))
        return True

    mark = files.file.mark.lock_inode, files.file.mark.size, True
    assert in_child(others_can_write)


def no_file(files: CacheFiles) -> StoreFile:
    return files.file._replace(mark=FileMark(), directory=CLOSED)


@pytest.mark.parametrize(
    ("file", "is_done"),
    [(no_file, True), (lambda files: files.file._replace(directory=CLOSED), False)],
    ids=["nobody has a file", "others have one"],
)
def test_a_worker_that_may_touch_no_file(
    make_files: MakeFiles, file: Callable[[CacheFiles], StoreFile], is_done: bool
) -> None:
    files = make_files()
    cache = SessionCache(files.rules, files.shared, file(files), Nonces(1))
    cache.own_directory()
    cache.reopen()
    assert answers(cache) == [is_done, False]
    assert lookup(cache, b"id") is None
    assert not delete(cache, b"id")
    cache.close()


def test_a_worker_that_can_not_open_the_file_that_others_have(make_files: MakeFiles) -> None:
    files = make_files()

    def without_descriptors() -> list[list[bool]]:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        cache = files.cache()
        before = answers(cache)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        cache.reopen()
        return [before, answers(cache)]

    assert in_child(without_descriptors) == [[False, False], [True, True]]


def test_a_report_wakes_the_janitor_once(make_files: MakeFiles) -> None:
    alarm = os.eventfd(0, os.EFD_NONBLOCK)
    mark = FileMark(alarm=alarm)
    mark.report_damage(0)
    mark.record(7, 8, 4096, True)
    mark.report_damage(6)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(alarm)
    mark.report_damage(7)
    mark.report_damage(7)
    assert os.eventfd_read(alarm) == 1
    os.close(alarm)
