"""What a start does with what waits at the socket: messages without an end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from support.own_descriptors import own_descriptors

from tlsmgr.processes import bridge, succession
from tlsmgr.processes.bridge import Met
from tlsmgr.processes.parking import MOST_CONNECTIONS, NO_BRIDGE, Parked

STRANGER = 12345


def test_strangers_do_not_hold_up_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever may connect may leave one message after another: a start looks at so many only."""
    looks = 0

    def meet(_: int) -> Met:
        nonlocal looks
        looks += 1
        assert looks <= 2 * MOST_CONNECTIONS, "it never ends"
        return Met(Parked(os.memfd_create("test"), NO_BRIDGE, 1, STRANGER), [])

    monkeypatch.setattr(bridge, "meet", meet)
    before = own_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        found = succession.receive((listener,), os.geteuid(), True, 0)
    assert found.message is None
    assert found.refused
    assert own_descriptors() == before
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == succession.MOST_REASONS
    assert all(f"it is from user {STRANGER}" in line for line in lines)
