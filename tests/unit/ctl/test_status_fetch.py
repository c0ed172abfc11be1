"""The status object through the control socket, and what goes wrong on the way."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.status_samples import ControlSocket, busy

from tlsmgr.client import ProtocolError, RequestFailed, TimedOut, TlsmgrError, Unavailable
from tlsmgr.ctl.status_fetch import fetch
from tlsmgr.status_object import as_json

GOOD = json.dumps(as_json(busy(60))).encode()


@contextmanager
def replying(path: Path, reply: bytes) -> Iterator[None]:
    """A control socket that gives one client this reply."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{path}-control")
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(100) == b"status\n"
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_a_status(tmp_path: Path) -> None:
    with ControlSocket(tmp_path / "s", busy):
        assert fetch(str(tmp_path / "s"), 30.0) == busy(60)


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (b"", ProtocolError, "not complete"),
        (GOOD, ProtocolError, "not complete"),
        (GOOD + b"\n", ProtocolError, "not complete"),
        (b"ok\n", ProtocolError, "no status object"),
        (b"[]\nok\n", ProtocolError, "no status object: status: not an object"),
        (b'{"pid": "x"}\nok\n', ProtocolError, "no status object: pid: wrong type str"),
        (b"junk\nok\n", ProtocolError, "no status object"),
        (b"\xff\nok\n", ProtocolError, "no status object"),
        (b"error only root may ask\n", RequestFailed, "only root may ask"),
    ],
)
def test_another_reply(tmp_path: Path, reply: bytes, error: type[TlsmgrError], text: str) -> None:
    with replying(tmp_path / "s", reply), pytest.raises(error, match=text):
        fetch(str(tmp_path / "s"), 30.0)


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="s: No such file or directory"):
        fetch(str(tmp_path / "s"), 30.0)


def test_the_program_of_postfix_in_place_of_this_one(tmp_path: Path) -> None:
    """After a start that failed, under the master(8) that runs; its socket is beside the note."""
    (tmp_path / "private").mkdir()
    (tmp_path / "pid").mkdir()
    socket_path, note = str(tmp_path / "private/tlsmgr"), tmp_path / "pid/tlsmgr-prefork.start"
    (tmp_path / "pid/master.pid").write_text("             123\n")
    note.write_text("stock 123 no packages for python3.13\n")
    status = fetch(socket_path, 30.0)
    reason = (
        "tlsmgr did not start, and Postfix's own was started in its place:"
        " no packages for python3.13"
    )
    assert (status.state, status.reasons, status.pid) == ("degraded", (reason,), 0)
    for text in ("stock 122 of another master\n", "", "starting 123\n"):
        note.write_text(text)
        with pytest.raises(Unavailable):
            fetch(socket_path, 30.0)


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s-control"))
        listener.listen()
        with pytest.raises(TimedOut, match=r"within 0\.1 s"):
            fetch(str(tmp_path / "s"), 0.1)
