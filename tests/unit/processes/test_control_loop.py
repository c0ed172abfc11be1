"""The loop of the control process, which the parent may end at any moment."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from support.cache_files import in_child
from support.parent_parts import inherited_for

from tlsmgr.processes.control import Control
from tlsmgr.processes.control_status import Facts

FACTS = Facts(1, "1.0", 0.0, "/etc/postfix", 1, "dev:/dev/urandom")
SLOT = 4


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(tmp_path / "control"))
    made.listen(5)
    made.setblocking(False)
    return made


def test_it_beats_and_ends_with_the_parent(listener: socket.socket) -> None:
    """One that does not beat would be killed as hung."""
    inherited = inherited_for(1)
    reader, writer = os.pipe()
    os.close(writer)

    def run() -> int:
        before = time.monotonic()
        Control(inherited, SLOT, listener, os.geteuid(), FACTS).run(reader)
        assert inherited.scoreboard.last_beat(SLOT) >= before
        return 7

    assert in_child(run) == 7
    os.close(reader)
    listener.close()
