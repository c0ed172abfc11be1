"""The client's end of the control socket, against scripted servers."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest
from support.scripted_server import ANNOUNCEMENT, HEAR, HOLD, ScriptedServer, Step

from tlsmgr.client.connection import ProtocolError, RequestFailed, TimedOut, Unavailable
from tlsmgr.client.control import LONGEST_LINE, ask
from tlsmgr.control_lines import DropRequest, ListRequest, StatusRequest


def control(tmp_path: Path, *steps: Step) -> ScriptedServer:
    return ScriptedServer(tmp_path / "s-control", steps)


def lines_of(tmp_path: Path, *steps: Step) -> list[str]:
    with control(tmp_path, *steps):
        return list(ask(str(tmp_path / "s"), StatusRequest()))


def test_a_reply(tmp_path: Path) -> None:
    with control(tmp_path, HEAR, b'{"a"', b":1}\n\n{}\nok\n") as server:
        assert list(ask(str(tmp_path / "s"), ListRequest("smtp", b"a b"))) == ['{"a":1}', "{}"]
    assert server.requests == [b"list smtp match=a%20b\n"]


def test_lines_come_as_they_are_sent(tmp_path: Path) -> None:
    """Not only when all have come."""
    with control(tmp_path, HEAR, b"{}\n", HOLD):
        reply = ask(str(tmp_path / "s"), DropRequest("smtp", None))
        assert next(reply) == "{}"
        reply.close()  # type: ignore[attr-defined]


def test_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestFailed, match=r"^no such thing$"):
        lines_of(tmp_path, HEAR, b"{}\nerror no such thing\n")


def test_a_server_that_refuses_before_it_reads(tmp_path: Path) -> None:
    """Its reason is shown, and not that the request could not be sent."""
    with pytest.raises(RequestFailed, match=r"^permission denied$"):
        lines_of(tmp_path, b"error permission denied\n")


@pytest.mark.parametrize("part", [b"", b"{}\n", b"{}\no", b"{}\nok"])
def test_an_incomplete_reply(tmp_path: Path, part: bytes) -> None:
    with pytest.raises(ProtocolError, match="the reply is not complete"):
        lines_of(tmp_path, HEAR, part)


def test_a_server_that_never_ends_a_line(tmp_path: Path) -> None:
    def flood(connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.sendall(bytes(1 << 20))

    with pytest.raises(ProtocolError, match=f"longer than {LONGEST_LINE} bytes"):
        lines_of(tmp_path, HEAR, flood)


def test_silence(tmp_path: Path) -> None:
    with control(tmp_path, HEAR, b"{}\n", HOLD):
        reply = ask(str(tmp_path / "s"), StatusRequest(), 0.1)
        assert next(reply) == "{}"
        with pytest.raises(TimedOut, match=r"within 0\.1 s"):
            next(reply)


def test_nobody_there(tmp_path: Path) -> None:
    """The message names the service socket: there is no tlsmgr at all."""
    with pytest.raises(Unavailable, match=f"^connect to {tmp_path}/s: No such file"):
        list(ask(str(tmp_path / "s"), StatusRequest()))


def test_a_daemon_that_starts_with_the_first_request(tmp_path: Path) -> None:
    """As under master(8): the control socket comes after the connection to the service."""
    started: list[ScriptedServer] = []

    def start(_: socket.socket) -> None:
        server = ScriptedServer(tmp_path / "s-control", (HEAR, b"{}\nok\n"))
        started.append(server.__enter__())

    with ScriptedServer(tmp_path / "s", (ANNOUNCEMENT, start, HOLD)):
        assert list(ask(str(tmp_path / "s"), StatusRequest())) == ["{}"]
    started[0].__exit__(None)


def test_a_tlsmgr_without_a_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlsmgr.client.control.START_TIME", 0.1)
    with (
        ScriptedServer(tmp_path / "s", (ANNOUNCEMENT, HOLD)),
        pytest.raises(Unavailable, match="it has no control socket: Postfix's own"),
    ):
        list(ask(str(tmp_path / "s"), StatusRequest()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do all")
def test_no_permission_here(tmp_path: Path) -> None:
    with control(tmp_path):
        (tmp_path / "s-control").chmod(0)
        with pytest.raises(Unavailable, match="only root and the owner of the tlsmgr may use it"):
            list(ask(str(tmp_path / "s"), StatusRequest()))
