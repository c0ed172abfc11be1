"""The watch over session files: a lost or damaged one is made again, and no other."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cache_files import CacheFiles

from tlsmgr.processes.filewatch import WATCH_INTERVAL, FileWatch
from tlsmgr.processes.inherited import CachePlan
from tlsmgr.processes.scoreboard import Scoreboard
from tlsmgr.sessions.cache import Change
from tlsmgr.sessions.file import FileMark, StoreError, StoreFile, inode_of, remove
from tlsmgr.sessions.seal import Entry, Nonces
from tlsmgr.sessions.store import create
from tlsmgr.shm import SharedMemory


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[CacheFiles]]:
    """Two caches whose files have the same name, in different directories."""
    pair = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files = CacheFiles(tmp_path / name)
        os.close(files.claim)
        files.claim = os.open(os.devnull, os.O_RDONLY)
        pair.append(files)
    yield pair
    for files in pair:
        files.remove()
    while _seen:
        os.close(_seen.pop())


def watch_of(
    pair: list[CacheFiles], scoreboard: Scoreboard | None = None
) -> tuple[FileWatch, list[str]]:
    """A watch over these files, and a note for each time that workers were retired."""
    retired: list[str] = []
    scoreboard = scoreboard or Scoreboard(SharedMemory(4096), 2, range(1, 2))
    plans = tuple(CachePlan(files.rules, files.shared, files.file) for files in pair)
    return FileWatch(plans, scoreboard, os.urandom, lambda: retired.append("retired")), retired


_seen: list[int] = []  # descriptors of all files seen so far, so that no inode is used again


def inodes(pair: list[CacheFiles]) -> list[int | None]:
    """Which files they are."""
    for files in pair:
        with contextlib.suppress(FileNotFoundError):
            _seen.append(os.open(files.path, os.O_RDONLY))
    return [inode_of(files.file) for files in pair]


def test_all_is_well(two: list[CacheFiles]) -> None:
    watch, retired = watch_of(two)
    watch.make_all()
    before = inodes(two)
    for _ in range(3):
        assert 0 < watch.run(0.0) < 10
    assert inodes(two) == before
    assert retired == []


def expect_first_made_anew(two: list[CacheFiles], acts: list[Callable[[], object]]) -> None:
    """Each act harms the first file: the next look makes it anew, and leaves the other alone."""
    watch, retired = watch_of(two)
    watch.make_all()
    for act in acts:
        before = inodes(two)
        act()
        watch.run(0.0)
        after = inodes(two)
        assert after[0] not in (None, before[0])
        assert after[1] == before[1]
        assert retired == ["retired"]
        retired.clear()
        watch.run(0.0)
        assert (inodes(two), retired) == (after, [])


def test_what_is_lost_is_made_anew_and_nothing_else(two: list[CacheFiles]) -> None:
    acts: list[Callable[[], object]] = [
        lambda: remove(two[0].file),
        lambda: two[0].file.mark.report_damage(two[0].file.mark.inode),
        lambda: os.rename(two[0].path, two[0].path.with_name("moved")),
    ]
    expect_first_made_anew(two, acts)


def test_a_lock_table_that_is_gone_or_another_one(two: list[CacheFiles]) -> None:
    """It belongs to its file: both are made again."""
    lock_table = two[0].path.with_name("smtp.sessions-lock")

    def replace() -> None:
        _seen.append(os.open(lock_table, os.O_RDONLY))  # as a worker has it open
        lock_table.unlink()
        lock_table.write_bytes(bytes(69632))

    acts: list[Callable[[], object]] = [
        lock_table.unlink,
        lambda: lock_table.rename(lock_table.with_name("elsewhere")),
        replace,
        lambda: os.truncate(two[0].path, 8192),
    ]
    expect_first_made_anew(two, acts)


def test_the_other_keys_are_there_before_the_file(
    two: list[CacheFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker that opens it at once would store under keys that nobody else has."""
    watch, _ = watch_of(two)
    watch.make_all()
    before = two[0].shared.seal().digest(b"id")
    during = []

    def note_and_create(file: StoreFile) -> int:
        during.append(two[0].shared.seal().digest(b"id"))
        return create(file)

    monkeypatch.setattr("tlsmgr.processes.filewatch.create", note_and_create)
    remove(two[0].file)
    watch.run(0.0)
    assert during == [two[0].shared.seal().digest(b"id")] != [before]


def test_a_file_that_was_lost_without_a_janitor(two: list[CacheFiles]) -> None:
    """Its successor makes the file again, and workers that have the old one are replaced."""
    watch, _ = watch_of(two)
    watch.make_all()
    for descriptor in watch._claims.values():
        os.close(descriptor)
    before = inodes(two)
    remove(two[0].file)
    second, retired = watch_of(two)
    second.make_all()
    second.run(0.0)
    after = inodes(two)
    assert after[0] not in (None, before[0])
    assert (after[1], retired) == (before[1], ["retired"])


AT_ONCE = pytest.mark.usefixtures("at_once")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that could not be made is tried again at each look."""
    monkeypatch.setattr("tlsmgr.processes.filewatch.RETRY_INTERVAL", 0.0)


@AT_ONCE
def test_a_report_of_damage_stays_until_the_file_is_made(two: list[CacheFiles]) -> None:
    """Nobody may open it meanwhile."""
    watch, retired = watch_of(two)
    watch.make_all()
    mark = two[0].file.mark
    mark.report_damage(mark.inode)
    two[0].path.with_name("smtp.sessions.new").mkdir()
    for _ in range(2):
        watch.run(0.0)
        assert mark.is_damaged
    two[0].path.with_name("smtp.sessions.new").rmdir()
    watch.run(0.0)
    assert not mark.is_damaged
    assert retired == ["retired"]


def test_a_file_that_is_made_again_has_other_keys(two: list[CacheFiles]) -> None:
    watch, _ = watch_of(two)
    watch.make_all()
    seals = [files.shared.seal(Nonces(1)) for files in two]
    remove(two[0].file)
    watch.run(0.0)
    entry = Entry(1, b"id", b"session")
    for files, seal, is_new in zip(two, seals, (True, False)):
        now = files.shared.seal()
        assert (now.digest(b"id") != seal.digest(b"id")) == is_new
        data = seal.encrypt(bytes(16), bytes(8), entry)
        assert (now.decrypt(bytes(16), bytes(8), data) is None) == is_new


def test_damage_of_an_older_file_says_nothing_of_the_new_one(two: list[CacheFiles]) -> None:
    """A process that is about to be replaced may still have it open."""
    watch, retired = watch_of(two)
    watch.make_all()
    inodes(two)
    old = two[0].file.mark.inode
    two[0].file.mark.report_damage(old)
    watch.run(0.0)
    before = inodes(two)
    assert before[0] != old
    two[0].file.mark.report_damage(old)
    watch.run(0.0)
    assert inodes(two) == before
    assert retired == ["retired"]


def test_files_are_checked_by_writing_while_a_file_system_blocks(two: list[CacheFiles]) -> None:
    scoreboard = Scoreboard(SharedMemory(4096), 2, range(1, 2))
    watch, _ = watch_of(two, scoreboard)
    watch.make_all()
    assert scoreboard.files_checked == 0
    for files in two:
        os.utime(files.path, (1, 1))
    watch.run(0.0)
    assert [os.stat(files.path).st_mtime for files in two] == [1, 1], "no write without need"
    first = scoreboard.files_checked
    assert first > 0
    scoreboard.files_blocked[0] = 1
    watch.run(0.0)
    assert all(os.stat(files.path).st_mtime > 1 for files in two)
    assert scoreboard.files_checked > first


@AT_ONCE
def test_a_file_that_can_not_be_made_is_tried_again(
    two: list[CacheFiles],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One warning in ten minutes, and a line when it is over."""
    watch, retired = watch_of(two)
    watch.make_all()
    before = inodes(two)
    remove(two[0].file)
    two[0].path.mkdir()
    for _ in range(5):
        watch.run(0.0)
    assert retired == []
    (line,) = capfd.readouterr().err.splitlines()
    assert "warning: cannot make smtp.sessions: " in line
    later = time.monotonic() + 600
    monkeypatch.setattr("tlsmgr.processes.filewatch.time.monotonic", lambda: later)
    for _ in range(5):
        watch.run(0.0)
    (line,) = capfd.readouterr().err.splitlines()
    assert "warning: cannot make smtp.sessions: " in line
    two[0].path.rmdir()
    watch.run(0.0)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(": smtp.sessions could be made: smtp sessions are cached")
    assert retired == ["retired"]
    remove(two[0].file)
    watch.run(0.0)
    (line,) = capfd.readouterr().err.splitlines()
    assert "warning: smtp.sessions was damaged or removed: recreated empty" in line
    retired.pop()
    after = inodes(two)
    assert after[0] not in (None, before[0])
    assert after[1] == before[1]


def test_one_that_can_not_be_made_does_not_delay_the_other(
    two: list[CacheFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried twice a minute, and all are looked at every two seconds."""
    watch, retired = watch_of(two)
    watch.make_all()
    remove(two[0].file)
    two[0].path.mkdir()
    tries = []

    def note_and_create(file: StoreFile) -> int:
        tries.append(file.directory)
        return create(file)

    monkeypatch.setattr("tlsmgr.processes.filewatch.create", note_and_create)
    clock = time.monotonic()
    monkeypatch.setattr("tlsmgr.processes.filewatch.time.monotonic", lambda: clock)
    delays = {watch.run(0.0)}
    remove(two[1].file)
    for _ in range(14):
        clock += WATCH_INTERVAL
        delays.add(watch.run(0.0))
    assert delays == {WATCH_INTERVAL}
    assert tries == [two[0].directory, two[1].directory]
    assert retired == ["retired"]
    clock += WATCH_INTERVAL
    watch.run(0.0)
    assert tries == [two[0].directory, two[1].directory, two[0].directory]


def test_a_file_that_an_earlier_janitor_still_claims_is_taken_over_later(
    two: list[CacheFiles],
) -> None:
    """It is blocked in the kernel, say. The file is sound: it keeps its keys and its sessions."""
    first, _ = watch_of(two)
    first.make_all()
    before, digest = inodes(two), two[0].shared.seal().digest(b"id")
    second, retired = watch_of(two)
    second.make_all()
    for _ in range(2):
        assert second.run(0.0) < 10
        assert not second._claims
    for descriptor in first._claims.values():
        os.close(descriptor)
    second.run(0.0)
    assert len(second._claims) == 2
    assert (inodes(two), retired) == (before, [])
    assert two[0].shared.seal().digest(b"id") == digest
    with pytest.raises(StoreError, match="unable to get exclusive lock"):
        create(two[0].file)


def test_the_file_of_another_daemon_is_left_alone(
    two: list[CacheFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    first, _ = watch_of(two)
    first.make_all()
    before = inodes(two)
    for files in two:
        files.file = files.file._replace(mark=FileMark())
    second, retired = watch_of(two)
    second.make_all()
    second.run(0.0)
    assert (inodes(two), retired) == (before, [])
    assert "unable to get exclusive lock" in capfd.readouterr().err


# At the start.


def at_start(pair: list[CacheFiles], capfd: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """A janitor's first look at the files; return who was retired, and the log."""
    watch, retired = watch_of(pair)
    watch.make_all()
    for descriptor in watch._claims.values():
        os.close(descriptor)
    return retired, capfd.readouterr().err


def test_files_of_an_earlier_daemon_are_kept(
    two: list[CacheFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    """And the first janitor says how many sessions are in them."""
    cache = two[0].cache()
    cache.apply([Change(b"%d" % n, b"session") for n in range(3)], 1_795_220_454)
    cache.close()
    before = inodes(two)
    for files in two:
        files.shared.is_inherited[0] = 1
    retired, text = at_start(two, capfd)
    assert inodes(two) == before
    assert retired == []
    assert "smtp TLS session cache: 3 sessions are kept in smtp.sessions" in text
    assert "smtp TLS session cache: 0 sessions are kept in smtp.sessions" in text
    assert at_start(two, capfd) == ([], ""), "another janitor"


def test_one_that_was_lost_between_daemons_is_made_new(
    two: list[CacheFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    """Under new keys, before there are workers."""
    for files in two:
        files.shared.is_inherited[0] = 1
    first, second = inodes(two)
    keys = [files.shared.dump(0).digest_key for files in two]
    os.truncate(two[0].path, 4096)
    retired, text = at_start(two, capfd)
    now = inodes(two)
    assert now[0] != first
    assert now[1] == second
    assert two[0].shared.dump(0).digest_key != keys[0]
    assert two[1].shared.dump(0).digest_key == keys[1]
    assert retired == []
    assert text.count("was damaged or removed: recreated empty") == 1


def test_one_whose_first_page_is_damaged(
    two: list[CacheFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    """It is noticed when it is counted, and made new by the next look."""
    two[0].path.write_bytes(bytes(two[0].file.mark.size))
    two[0].shared.is_inherited[0] = 1
    first, second = inodes(two)
    watch, retired = watch_of(two)
    watch.make_all()
    watch.run(0.0)
    assert retired == ["retired"]
    now = inodes(two)
    assert now[0] != first
    assert now[1] == second
    for descriptor in watch._claims.values():
        os.close(descriptor)
