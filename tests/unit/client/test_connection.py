"""The client's connection: servers that are silent, slow, gone, or talk nonsense."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scripted_server import ANNOUNCEMENT, HEAR, HOLD, LIMIT, ScriptedServer, Step

from tlsmgr import client as client_module
from tlsmgr.client import (
    BadRequest,
    Client,
    ProtocolError,
    TimedOut,
    TlsmgrError,
    Unavailable,
)
from tlsmgr.client import connection as connection_module

REQUEST = b"request\0seed\0size\x004\0\0"
REPLY = b"status\x000\0seed\0QUJDRA==\0\0"
SEED = b"ABCD"
REFUSAL = b"status\x004294967294\0\0"
LARGE = bytes(4 << 20)  # more than the buffers of a socket
GOOD: Sequence[Step] = (ANNOUNCEMENT, HEAR, REPLY, HOLD)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


# The announcement


@pytest.mark.parametrize(
    "announcement",
    [
        b"\0",
        b"protocol\0other_protocol\0\0",
        b"proto\0tlsmgr_protocol\0\0",
        ANNOUNCEMENT[:-1] + b"more\0of it\0\0",
    ],
)
def test_wrong_announcement(path: Path, announcement: bytes) -> None:
    with (
        ScriptedServer(path, [announcement, HOLD]) as server,
        Client(path) as client,
        pytest.raises(ProtocolError, match="does not announce itself as tlsmgr"),
    ):
        client.seed(4)
    assert server.accepted == 1


@pytest.mark.parametrize("said", [b"", b"proto", b"220 mail.example ESMTP\r\n"])
def test_no_announcement(path: Path, said: bytes) -> None:
    with (
        ScriptedServer(path, [said, HOLD]),
        Client(path, timeout=0.2) as client,
        pytest.raises(TimedOut, match=r"0\.2 s"),
    ):
        client.connect()


def test_connect_is_enough_to_check_the_announcement(path: Path) -> None:
    with ScriptedServer(path, GOOD) as server, Client(path) as client:
        client.connect()
        client.connect()
        assert client.seed(4) == SEED
    assert server.accepted == 1


# The time limit


@pytest.mark.parametrize("said", [b"", b"status", REPLY[:-1]])
def test_silence_in_place_of_the_reply(path: Path, said: bytes) -> None:
    before = time.monotonic()
    with ScriptedServer(path, [ANNOUNCEMENT, HEAR, said, HOLD], GOOD) as server:
        client = Client(path, timeout=0.2)
        with pytest.raises(TimedOut, match=r"0\.2 s"):
            client.seed(4)
        assert time.monotonic() - before >= 0.2
        client.timeout = None
        assert client.seed(4) == SEED  # on a new connection: a late reply would be misread
        client.close()
    assert server.accepted == 2


def test_the_limit_is_for_the_whole_call(path: Path) -> None:
    def drip(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b"x")
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            pass

    with (
        ScriptedServer(path, [ANNOUNCEMENT, HEAR, drip]),
        Client(path, timeout=0.3) as client,
        pytest.raises(TimedOut),
    ):
        client.seed(4)


def test_a_server_that_does_not_read(path: Path) -> None:
    done = threading.Event()
    with ScriptedServer(path, [ANNOUNCEMENT, _wait_for(done)]), Client(path, timeout=0.3) as client:
        with pytest.raises(TimedOut):
            client.update("smtp", b"id", LARGE)
        done.set()


def test_a_full_listen_queue(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
            first.connect(str(path))
            with pytest.raises(TimedOut):
                Client(path, timeout=0.2).seed(4)


# Connections that break, and that can't be made

BREAKS: dict[str, Sequence[Step]] = {
    "at once": (),
    "in the announcement": (ANNOUNCEMENT[:9],),
    "after the announcement": (ANNOUNCEMENT,),
    "after the request": (ANNOUNCEMENT, HEAR),
    "in the reply": (ANNOUNCEMENT, HEAR, REPLY[:-1]),
}
EVERY_BREAK = pytest.mark.parametrize("script", BREAKS.values(), ids=BREAKS)


@EVERY_BREAK
def test_a_connection_that_breaks_once(path: Path, script: Sequence[Step]) -> None:
    with ScriptedServer(path, script, GOOD) as server, Client(path) as client:
        assert client.seed(4) == SEED
    assert server.accepted == 2
    assert server.requests == [REQUEST] * (1 + (HEAR in script))


@EVERY_BREAK
def test_a_connection_that_breaks_twice(path: Path, script: Sequence[Step]) -> None:
    with (
        ScriptedServer(path, script, script) as server,
        Client(path) as client,
        pytest.raises(Unavailable, match="closed the connection twice"),
    ):
        client.seed(4)
    assert server.accepted == 2


@pytest.mark.parametrize("ending", [(), (HOLD,)], ids=["close", "stay"])
@pytest.mark.parametrize("parting", [b"x", ANNOUNCEMENT, REPLY])
def test_what_comes_unasked_is_no_reply(path: Path, parting: bytes, ending: Sequence[Step]) -> None:
    first = [ANNOUNCEMENT, HEAR, REPLY + parting, *ending]
    with ScriptedServer(path, first, GOOD) as server, Client(path) as client:
        assert [client.seed(4), client.seed(4)] == [SEED, SEED]
    assert server.accepted == 2


def test_closed_between_requests(path: Path) -> None:
    script = GOOD[:-1]
    with ScriptedServer(path, script, script, ()) as server, Client(path) as client:
        assert [client.seed(4), client.seed(4)] == [SEED, SEED]
        with pytest.raises(Unavailable):
            client.seed(4)
    assert server.requests == [REQUEST, REQUEST]


def test_an_unread_request_is_no_error(path: Path) -> None:
    # A server that closes with unread data makes the kernel say ECONNRESET.
    def read_a_little(connection: socket.socket) -> None:
        connection.recv(3)

    with ScriptedServer(path, [ANNOUNCEMENT, read_a_little], GOOD), Client(path) as client:
        assert client.seed(4) == SEED


def test_close_is_final_only_for_the_connection(path: Path) -> None:
    with ScriptedServer(path, GOOD, GOOD) as server:
        client = Client(path)
        for _ in range(2):
            with client:
                assert client.seed(4) == SEED
        client.close()
    assert server.accepted == 2


def test_an_interrupted_call_leaves_no_reply_behind(path: Path) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(_: int, __: FrameType | None) -> None:
        raise Interrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with (
            ScriptedServer(path, [ANNOUNCEMENT, HEAR, HOLD], GOOD) as server,
            Client(path) as client,
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupt):
                client.seed(4)
            assert client.seed(4) == SEED
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert server.accepted == 2


def test_cannot_connect(path: Path) -> None:
    plain_file, stale = path.with_name("file"), path.with_name("stale")
    plain_file.touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(stale))
    nobody = "; no tlsmgr serves there"
    for dead, end in (
        (path, f"No such file or directory{nobody}"),
        (plain_file, f"Connection refused{nobody}"),
        (stale, f"Connection refused{nobody}"),
        (path / ("x" * 108), "AF_UNIX path too long"),
    ):
        with pytest.raises(Unavailable) as error:
            Client(dead).seed(4)
        assert str(error.value) == f"connect to {dead}: {end}"


# Large messages, and rubbish


@pytest.mark.parametrize("hold", [True, False])
def test_a_request_refused_half_way(path: Path, hold: bool) -> None:
    """The refusal is seen though the server never reads the request to its end."""

    def read_a_little(connection: socket.socket) -> None:
        connection.recv(1000)

    done = threading.Event()
    ending: list[Step] = [_wait_for(done), HOLD] if hold else []
    script: list[Step] = [ANNOUNCEMENT, read_a_little, REFUSAL, *ending]
    with ScriptedServer(path, script, GOOD) as server, Client(path) as client:
        with pytest.raises(BadRequest, match="too large"):
            client.update("smtp", b"id", LARGE)
        done.set()
        assert client.seed(4) == SEED
    assert server.accepted == 2


def test_a_reply_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "VALUE_LIMIT", 1 << 20)

    def pour(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b"x" * 10000)
        except (BrokenPipeError, ConnectionResetError):
            pass

    with (
        ScriptedServer(path, [ANNOUNCEMENT, HEAR, pour]),
        Client(path) as client,
        pytest.raises(ProtocolError, match="more than 1048576 bytes"),
    ):
        client.lookup("smtp", b"id")


TOKENS = st.sampled_from(
    [b"status", b"0", b"4294967295", b"4294967294", b"seed", b"QUJDRA==", b"=", b"\xff", b"", b"x"]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(reply=st.lists(TOKENS).map(lambda tokens: b"\0".join(tokens)) | st.binary(max_size=60))
def test_any_reply_ends_in_a_seed_or_an_error_of_ours(
    path: Path, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    monkeypatch.setattr(client_module, "RECONNECT_PAUSE", 0.0)
    path.unlink(missing_ok=True)
    script: Sequence[Step] = [ANNOUNCEMENT, HEAR, reply]
    with ScriptedServer(path, script, script), Client(path) as client:
        try:
            seed = client.seed(4)
        except TlsmgrError as error:
            text = str(error)
            assert [word for word in ("\n", "ABCD") if word in text] == []
        else:
            assert seed == SEED


def _wait_for(event: threading.Event) -> Step:
    """Step: do nothing, and read nothing, until the test says so."""

    def step(_: socket.socket) -> None:
        assert event.wait(LIMIT)

    return step
