"""The client library: against stock tlsmgr(8), and every byte against scripted replies."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.postfix_instance import StockTlsmgr, postfix_missing
from support.scripted_server import ANNOUNCEMENT, HEAR, HOLD, ScriptedServer, Step

from tlsmgr.client import (
    BadRequest,
    Client,
    Policy,
    ProtocolError,
    RequestFailed,
    TicketKey,
)

OK = b"status\x000\0"
FAIL = b"status\x004294967295\0"
BAD = b"status\x004294967294\0"
NAME, BITS, HMAC = b"n" * 16, b"b" * 32, b"h" * 32
KEYBUF = NAME + BITS + HMAC + struct.pack("=q", 1795227601)
SEED_OK = OK + b"seed\0QUJDRA==\0\0"  # ABCD

# Every call, the bytes of its request, a good reply, and the result.
Call = Callable[[Client], object]
CALLS: dict[str, tuple[Call, bytes, bytes, object]] = {
    "seed": (
        lambda client: client.seed(4),
        b"request\0seed\0size\x004\0\0",
        SEED_OK,
        b"ABCD",
    ),
    "policy": (
        lambda client: client.policy("smtp"),
        b"request\0policy\0cache_type\0smtp\0\0",
        OK + b"cachable\x001\0timeout\x003600\0\0",
        Policy(True, 3600),
    ),
    "lookup": (
        lambda client: client.lookup("smtp", b"spec1"),
        b"request\0lookup\0cache_type\0smtp\0cache_id\0spec1\0\0",
        OK + b"session\0aGVsbG8=\0\0",
        b"hello",
    ),
    "update": (
        lambda client: client.update("smtp", b"spec1", b"hello"),
        b"request\0update\0cache_type\0smtp\0cache_id\0spec1\0session\0aGVsbG8=\0\0",
        OK + b"\0",
        None,
    ),
    "delete": (
        lambda client: client.delete("smtpd", b"\xff&"),
        b"request\0delete\0cache_type\0smtpd\0cache_id\0\xff&\0\0",
        OK + b"\0",
        True,
    ),
    "tktkey": (
        lambda client: client.ticket_key(),
        b"request\0tktkey\0keyname\0\0\0",
        OK + b"keybuf\0" + base64.b64encode(KEYBUF) + b"\0\0",
        TicketKey(NAME, BITS, HMAC, 1795227601),
    ),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS)


@pytest.fixture(scope="module")
def stock() -> Iterator[StockTlsmgr]:
    if reason := postfix_missing("btree"):
        pytest.skip(reason)
    with StockTlsmgr() as server:
        yield server


@pytest.fixture
def client(stock: StockTlsmgr) -> Iterator[Client]:
    with Client(stock.socket) as client:
        yield client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


# Against stock tlsmgr


@pytest.mark.parametrize("size", [1, 32, 255])
def test_seed_has_the_size_asked_for(client: Client, size: int) -> None:
    first, second = client.seed(size), client.seed(size)
    assert (len(first), len(second)) == (size, size)
    assert first != second or size == 1


@pytest.mark.parametrize("size", [0, 256, 0xFFFFFFFF])
def test_bad_seed_size_is_refused_and_the_client_goes_on(client: Client, size: int) -> None:
    with pytest.raises(BadRequest, match="1 to 255"):
        client.seed(size)
    assert len(client.seed(8)) == 8


def test_policy(client: Client) -> None:
    assert client.policy("smtp") == Policy(True, 3600)
    assert client.policy("lmtp") == Policy(False, 3600)
    with pytest.raises(BadRequest, match="unknown"):
        client.policy("bogus")


@pytest.mark.parametrize("cache_id", [b"", b"smtp&[127.0.0.1]:25&&0123", b"i" * 700])
@pytest.mark.parametrize(
    "session", [b"", b"x", bytes(range(256)), bytes(1_000_000)], ids=["empty", "1", "256", "1e6"]
)
def test_a_session_comes_back_until_deleted(
    client: Client, cache_id: bytes, session: bytes
) -> None:
    client.update("smtp", cache_id, session)
    assert client.lookup("smtp", cache_id) == session
    assert client.lookup("smtpd", cache_id) is None
    assert client.delete("smtp", cache_id) is True
    assert client.lookup("smtp", cache_id) is None
    assert client.delete("smtp", cache_id) is False


def test_a_cache_that_is_not_configured_is_a_bad_request(client: Client) -> None:
    for call in (
        lambda: client.lookup("lmtp", b"id"),
        lambda: client.update("lmtp", b"id", b"session"),
        lambda: client.delete("lmtp", b"id"),
    ):
        with pytest.raises(BadRequest, match="no database"):
            call()


def test_ticket_keys(client: Client) -> None:
    key = client.ticket_key()
    assert key is not None
    assert (len(key.name), len(key.bits), len(key.hmac), len(key.to_bytes())) == (16, 32, 32, 88)
    assert time.time() < key.tout < time.time() + 3600
    assert client.ticket_key() == client.ticket_key(key.name) == key
    assert client.ticket_key(b"no such key name") is None
    with pytest.raises(BadRequest, match="16 bytes"):
        client.ticket_key(b"short")


def test_restart_of_the_server_is_not_noticed(stock: StockTlsmgr, client: Client) -> None:
    client.update("smtp", b"id", b"session")
    stock.stop()
    stock.start()
    assert client.lookup("smtp", b"id") is None  # a new process, with an empty cache
    assert len(client.seed(32)) == 32


# Requests and replies, byte for byte


@EVERY_CALL
def test_request_bytes_and_good_reply(path: Path, call: str) -> None:
    function, request, reply, result = CALLS[call]
    script: list[Step] = [ANNOUNCEMENT, HEAR, reply, HEAR, reply, HOLD]
    with ScriptedServer(path, script) as server, Client(path) as client:
        assert function(client) == result
        assert function(client) == result
    assert server.requests == [request, request]


@EVERY_CALL
def test_reply_in_single_bytes(path: Path, call: str) -> None:
    function, _, reply, result = CALLS[call]
    announcement, pieces = _bytewise(ANNOUNCEMENT), _bytewise(reply)
    with ScriptedServer(path, [*announcement, HEAR, *pieces, HOLD]), Client(path) as client:
        assert function(client) == result


@EVERY_CALL
def test_other_attributes_in_a_reply_are_skipped(path: Path, call: str) -> None:
    function, _, reply, result = CALLS[call]
    strange = b"new\0attribute\0"
    split = len(OK)
    odd = strange + reply[:split] + strange + reply[split:-1] + strange + b"\0"
    with ScriptedServer(path, [ANNOUNCEMENT, HEAR, odd, HOLD]), Client(path) as client:
        assert function(client) == result


@EVERY_CALL
@pytest.mark.parametrize("status", [b"5", b"", b"abc", b"-1", b"4294967296", b"1" * 5000])
def test_status_that_is_none(path: Path, call: str, status: bytes) -> None:
    function, _, reply, _ = CALLS[call]
    odd = b"status\0" + status + b"\0" + reply[len(OK) :]
    with (
        ScriptedServer(path, [ANNOUNCEMENT, HEAR, odd, HOLD]),
        Client(path) as client,
        pytest.raises(ProtocolError, match="status"),
    ):
        function(client)


@pytest.mark.parametrize(
    ("call", "reply", "complaint"),
    [
        ("seed", b"\0", "missing attribute status"),
        ("seed", b"seed\0QUJDRA==\0" + OK + b"\0", "missing attribute seed"),
        ("seed", OK + b"\0", "missing attribute seed"),
        ("seed", OK + b"seed\0QUJD\0\0", "seed of 4 bytes, received 3"),
        ("seed", OK + b"seed\0QUJDRA=\0\0", "seed of the reply is not base64"),
        ("seed", OK + b"seed\0QUJD*RA==\0\0", "seed of the reply is not base64"),
        ("policy", OK + b"timeout\x003600\0cachable\x001\0\0", "missing attribute timeout"),
        ("policy", OK + b"cachable\0yes\0timeout\x003600\0\0", "cachable of the reply is no"),
        ("policy", OK + b"cachable\x001\0\0", "missing attribute timeout"),
        ("lookup", FAIL + b"\0", "missing attribute session"),
        ("lookup", OK + b"session\0c2VjcmV0IQ\0\0", "session of the reply is not base64"),
        ("tktkey", OK + b"keybuf\0\0\0", "key of 88 bytes, received 0"),
        ("tktkey", OK + b"keybuf\0" + base64.b64encode(KEYBUF[:84]) + b"\0\0", "received 84"),
        ("delete", OK + b"x\0y\0" * 100 + b"\0", "more than 100 attributes"),
    ],
)
def test_reply_that_no_server_sends(path: Path, call: str, reply: bytes, complaint: str) -> None:
    with ScriptedServer(path, [ANNOUNCEMENT, HEAR, reply, HOLD]), Client(path) as client:
        with pytest.raises(ProtocolError, match=complaint) as error:
            CALLS[call][0](client)
        assert "QUJ" not in str(error.value)
        assert "c2Vj" not in str(error.value)


@EVERY_CALL
def test_status_bad_request_may_stand_alone(path: Path, call: str) -> None:
    with (
        ScriptedServer(path, [ANNOUNCEMENT, HEAR, BAD + b"\0", HOLD]),
        Client(path) as client,
        pytest.raises(BadRequest, match="status -2"),
    ):
        CALLS[call][0](client)


@pytest.mark.parametrize(
    ("call", "rest"),
    [("seed", b"seed\0\0"), ("policy", b"cachable\x000\0timeout\x000\0"), ("update", b"")],
)
def test_status_failed_where_nothing_can_be_not_found(path: Path, call: str, rest: bytes) -> None:
    script: list[Step] = [ANNOUNCEMENT, HEAR, FAIL + rest + b"\0", HOLD]
    with (
        ScriptedServer(path, script),
        Client(path) as client,
        pytest.raises(RequestFailed, match="status -1"),
    ):
        CALLS[call][0](client)


def test_key_bytes_are_not_in_repr() -> None:
    key = TicketKey(NAME, BITS, HMAC, 1)
    assert "nnnn" in repr(key)
    assert "bbbb" not in repr(key)
    assert "hhhh" not in repr(key)


def test_what_has_no_form_on_the_wire_is_not_sent(path: Path) -> None:
    client = Client(path)  # and nobody listens
    for call in (
        lambda: client.lookup("smtp", b"a\0b"),
        lambda: client.policy("smtp\0"),
        lambda: client.seed(-1),
        lambda: client.seed(1 << 32),
    ):
        with pytest.raises(BadRequest):
            call()


def _bytewise(message: bytes) -> list[Step]:
    return [message[i : i + 1] for i in range(len(message))]
