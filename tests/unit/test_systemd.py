"""The watchdog's job, where the system has no descriptor for a moment."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.raw_client import ANNOUNCEMENT

from tlsmgr.systemd import QUESTION, Watchdog

ANSWER = b"status\x000\0seed\0AAAA\0\0"


def test_a_socket_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks again after its usual interval: a minute would be too long for systemd."""
    environment = {"WATCHDOG_USEC": "4000000", "NOTIFY_SOCKET": str(tmp_path / "notify")}
    service, notices = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, 2)
    with service, notices:
        service.bind(str(tmp_path / "service"))
        service.listen()
        notices.bind(environment["NOTIFY_SOCKET"])
        notices.setblocking(False)
        watchdog = Watchdog(str(tmp_path / "service"), environment)
        with monkeypatch.context() as scarce:
            scarce.setattr(socket, "socket", _fail)
            assert watchdog.run(0.0) == 1.0
        assert watchdog.run(0.0) == 1.0
        with pytest.raises(BlockingIOError):
            notices.recv(100)
        asked, _ = service.accept()
        with asked:
            assert asked.recv(100) == QUESTION
            asked.send(ANNOUNCEMENT + ANSWER)
            watchdog.run(0.0)
        assert notices.recv(100) == b"WATCHDOG=1"
        assert watchdog._asked is not None
        watchdog._asked.close()


def _fail(*_: object) -> None:
    raise OSError(23, "Too many open files in system")
