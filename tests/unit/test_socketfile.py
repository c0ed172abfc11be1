"""The standalone daemon's socket file: two starters at once, and other files at its path."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from tlsmgr import socketfile
from tlsmgr.log import Fatal
from tlsmgr.socketfile import listening

SIGNALS = (signal.SIGTERM,)


def reason(path: Path) -> str:
    """Why it is refused."""
    with pytest.raises(Fatal) as refusal, listening(str(path), SIGNALS):
        pytest.fail("it was accepted")
    return refusal.value.text


def test_the_socket_of_a_starter_that_does_not_listen_yet_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
        first.bind(str(path))
        inode = path.stat().st_ino
        reasons: list[str] = []
        second = threading.Thread(target=lambda: reasons.append(reason(path)))
        second.start()
        second.join(0.2)
        assert second.is_alive(), "it waits for the first one"
        first.listen()
        os.close(directory)
        second.join(30)
    assert reasons == [f"{path} is in use: another tlsmgr serves there"]
    assert path.stat().st_ino == inode


def test_a_lock_that_is_kept_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketfile, "LOCK_TIME", 0.05)
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    assert reason(tmp_path / "socket") == f"{tmp_path} is locked by another program"
    os.close(directory)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_released_when_it_listens(tmp_path: Path) -> None:
    with listening(str(tmp_path / "one"), SIGNALS), listening(str(tmp_path / "two"), SIGNALS):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert list(tmp_path.iterdir()) == []
