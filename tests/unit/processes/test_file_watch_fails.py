"""The watch over session files, when a file system that blocked fails instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.cache_files import CacheFiles
from support.daemon_process import wait_for
from support.fuse_disk import fuse_disk

from tlsmgr.processes.filewatch import FileWatch
from tlsmgr.processes.inherited import CachePlan
from tlsmgr.processes.scoreboard import Scoreboard
from tlsmgr.shm import SharedMemory

WARNING = "warning: cannot make smtp.sessions: "


def test_it_does_not_block_any_more(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """So other files can be used again; this one is made again, or tried."""
    scoreboard = Scoreboard(SharedMemory(4096), 2, range(1, 2))
    with fuse_disk(tmp_path) as remote:
        files = CacheFiles(remote.path)
        os.close(files.claim)
        plan = CachePlan(files.rules, files.shared, files.file)
        watch = FileWatch((plan,), scoreboard, os.urandom, lambda: None)
        watch.make_all()
        scoreboard.files_blocked[0] = 1
        remote.kill()
        watch.run(0.0)
        assert scoreboard.files_checked > 0
        wait_for(lambda: watch.run(0.0) and WARNING in capfd.readouterr().err, "a warning")
        os.close(files.directory)
