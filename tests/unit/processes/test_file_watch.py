"""The watch over the caches' files: what is lost or damaged is made anew, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cache_files import CacheFiles

from tlsmgr.processes.inherited import CachePlan
from tlsmgr.processes.janitor import FileWatch
from tlsmgr.sessions.store import inode_of, remove


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


def watch_of(pair: list[CacheFiles]) -> tuple[FileWatch, list[str]]:
    """A watch over these files, and a note for each time that workers were retired."""
    retired: list[str] = []
    plans = tuple(CachePlan(files.rules, files.shared, files.file) for files in pair)
    return FileWatch(plans, lambda: retired.append("retired"), os.urandom), retired


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


def test_what_is_lost_is_made_anew_and_nothing_else(two: list[CacheFiles]) -> None:
    watch, retired = watch_of(two)
    watch.make_all()
    acts: list[Callable[[], object]] = [
        lambda: remove(two[0].file),
        two[0].shared.report_damage,
        lambda: os.rename(two[0].path, two[0].path.with_name("moved")),
    ]
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


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_killed_by_its_map_has_met_damage(
    two: list[CacheFiles], number: signal.Signals
) -> None:
    """LMDB ends the process by SIGABRT when an assertion of its fails."""
    watch, retired = watch_of(two)
    watch.make_all()
    before = inodes(two)
    watch.child_died(-signal.SIGKILL)
    watch.child_died(1)
    watch.run(0.0)
    assert inodes(two) == before
    watch.child_died(-number)
    watch.run(0.0)
    assert not set(inodes(two)) & set(before)
    assert retired == ["retired"]


def test_a_file_that_can_not_be_made_is_tried_again(
    two: list[CacheFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    watch, retired = watch_of(two)
    watch.make_all()
    before = inodes(two)
    remove(two[0].file)
    two[0].path.mkdir()
    watch.run(0.0)
    assert retired == []
    assert "warning: cannot make smtp.sessions: " in capfd.readouterr().err
    two[0].path.rmdir()
    watch.run(0.0)
    assert retired == ["retired"]
    after = inodes(two)
    assert after[0] not in (None, before[0])
    assert after[1] == before[1]


def test_the_file_of_another_daemon_is_left_alone(
    two: list[CacheFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    first, _ = watch_of(two)
    first.make_all()
    before = inodes(two)
    second, retired = watch_of(two)
    second.make_all()
    second.run(0.0)
    assert (inodes(two), retired) == (before, [])
    assert "unable to get exclusive lock" in capfd.readouterr().err
