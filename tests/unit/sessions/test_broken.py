"""A cache whose file is missing or damaged answers misses, and takes updates."""

from __future__ import annotations

import os

import pytest
from support.cache_files import MIB, end_of_child, in_child
from support.cache_fixtures import NOW, MakeFiles, delete, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.cache import Change, SessionCache
from tlsmgr.sessions.file import remove
from tlsmgr.sessions.seal import SERIAL_BYTES, Nonces
from tlsmgr.sessions.store import Store


def check_that_it_serves_without(cache: SessionCache) -> None:
    """Updates are accepted and lookups find nothing."""
    update(cache, (b"a", b"session"), (b"b", b"session"))
    assert lookup(cache, b"a") is None
    assert not delete(cache, b"a")
    assert cache.apply([Change(b"a", b"s"), Change(b"a", None)], NOW) == [True, False]


def test_without_a_file(make_files: MakeFiles) -> None:
    files = make_files()
    cache = SessionCache(files.rules, files.shared, None, Nonces(1))
    check_that_it_serves_without(cache)
    assert cache.size() == (0, 0)
    cache.close()


def test_a_file_that_was_removed_serves_its_users(make_files: MakeFiles) -> None:
    files = make_files()
    cache = files.cache()
    remove(files.file)
    update(cache, (b"id", b"session"))
    assert lookup(cache, b"id") == b"session"


def test_garbage_in_the_file_is_a_miss_and_a_word_to_the_parent(
    make_files: MakeFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    files = make_files()

    def meet_garbage() -> tuple[int, bool]:
        cache = files.cache()
        update(cache, *((b"%d" % number, bytes(1200)) for number in range(3000)))
        size = files.path.stat().st_size
        with open(files.path, "r+b") as file:
            file.seek(0)
            file.write(os.urandom(size))
        found = [lookup(cache, b"%d" % number) for number in range(3000)]
        update(cache, (b"id", b"session"))
        return sum(one is not None for one in found), files.file.mark.is_damaged

    assert in_child(meet_garbage) == (0, True)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, "one warning in ten minutes"
    assert "warning: smtp TLS session cache: " in lines[0]


@pytest.mark.parametrize("part", [0.0, 0.001, 0.002, 0.3, 0.5, 0.7, 0.999])
def test_a_file_that_was_cut_can_not_be_opened(make_files: MakeFiles, part: float) -> None:
    """Reading beyond the cut would end the process by an assertion of LMDB's."""
    files = make_files()
    update(files.cache(), *((b"%d" % number, bytes(1200)) for number in range(3000)))
    files.close()
    os.truncate(files.path, int(part * files.path.stat().st_size) // 4096 * 4096)

    def open_it() -> str:
        try:
            Store(files.file)
        except Exception as error:
            return type(error).__name__
        return "was opened"

    assert end_of_child(open_it) == ("StoreError", 0)


def test_damage_is_reported_until_a_new_file_is_there(make_files: MakeFiles) -> None:
    """Until a new file is there; a report about an older one says nothing."""
    files = make_files()
    mark = files.file.mark
    mark.report_damage(mark.inode + 1)
    assert not mark.is_damaged
    assert mark.is_sound(mark.inode)
    mark.report_damage(mark.inode)
    assert mark.is_damaged
    assert not mark.is_sound(mark.inode)
    mark.record(mark.inode, 1, MIB, True)
    assert not mark.is_damaged, "the number may be that of another file one day"
    assert mark.is_sound(mark.inode)


def test_a_key_that_is_too_high_is_damage(make_files: MakeFiles) -> None:
    """A new record could only be stored before it, and would count as old there."""
    files = make_files()
    with files.store().writing() as batch:
        assert batch._txn.put(b"\xff" * SERIAL_BYTES, bytes(100), db=batch._records)
    check_that_it_serves_without(files.cache())
    assert files.file.mark.is_damaged
