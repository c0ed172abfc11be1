"""How long workers wait for the files, and what a child inherits of them."""

from __future__ import annotations

import pytest
from support.parent_parts import parent_of

from tlsmgr.processes.file_access import MAKE_TIME
from tlsmgr.processes.janitor import Message
from tlsmgr.sessions.file import CLOSED

NOW = 5000.0


def test_workers_wait_for_the_files_but_not_for_long() -> None:
    with parent_of(1) as scene:
        access = scene.parent.access
        assert access.seconds_left(NOW) == 0.0, "nobody said to wait"
        access.wait_for_files(NOW)
        left = [access.seconds_left(NOW + MAKE_TIME * part) for part in (0.0, 0.25, 1.0, 2.0)]
        assert left == pytest.approx([MAKE_TIME, 0.75 * MAKE_TIME, 0.0, 0.0])
        assert not access.is_allowed()
        scene.tell(Message("made"))
        assert access.seconds_left(NOW) == 0.0
        assert access.is_allowed()


def test_a_child_that_uses_no_files_inherits_no_directory() -> None:
    """But whether others have files: it answers an update as they do."""
    with parent_of(1) as scene:
        scene.make_files()
        (with_file,) = scene.parent.access.record(True).caches
        (without,) = scene.parent.access.record(False).caches
        assert with_file.file is not None
        assert with_file.file.directory >= 0
        assert without.file == with_file.file._replace(directory=CLOSED)
