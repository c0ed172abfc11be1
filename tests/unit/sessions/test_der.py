"""The protocol version inside a session: of any SSL_SESSION, and none of anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.session_bytes import sequence

from tlsmgr.sessions.der import TLS_1_3, protocol_name, protocol_version

HEAD = bytes.fromhex("020101 02020304 04021302")  # version 1, TLS 1.3, a cipher
LONG = HEAD + bytes(1000)


@pytest.mark.parametrize("content", [HEAD, HEAD + bytes(150), LONG, HEAD + bytes(70000)])
def test_a_session(content: bytes) -> None:
    assert protocol_version(sequence(content)) == TLS_1_3
    assert protocol_name(sequence(content)) == "TLSv1.3"


@pytest.mark.parametrize(
    ("version", "name"),
    [("0300", "SSLv3"), ("0301", "TLSv1"), ("0302", "TLSv1.1"), ("0303", "TLSv1.2")],
)
def test_older_protocols(version: str, name: str) -> None:
    assert protocol_name(sequence(bytes.fromhex("020101 0202" + version))) == name


def test_a_protocol_without_a_name() -> None:
    session = sequence(bytes.fromhex("020101 0202 0305"))
    assert protocol_version(session) == 0x0305
    assert protocol_name(session) is None


@pytest.mark.parametrize(
    "session",
    [
        b"",
        b"\x30",
        b"\x30\xff",
        b"session",
        sequence(b""),
        sequence(HEAD)[:-1],  # shorter than it says
        b"\x30\x82",  # without the bytes of its length
        b"\x30\x82\x01",
        sequence(HEAD) + b"\0",  # longer
        b"\x31" + sequence(HEAD)[1:],  # a SET
        b"\x30\x80" + HEAD + bytes(2),  # the indefinite form
        b"\x30\x81" + bytes([len(HEAD)]) + HEAD,  # a length in more bytes than it takes
        b"\x30\x83\x00" + len(LONG).to_bytes(2, "big") + LONG,
        b"\x30\x85" + len(LONG).to_bytes(5, "big") + LONG,
        sequence(bytes.fromhex("020102 02020304")),  # another version of the structure
        sequence(bytes.fromhex("020101 0201 04")),  # a protocol of one byte
        sequence(bytes.fromhex("020101 0202 03")),
    ],
)
def test_no_session(session: bytes) -> None:
    assert protocol_version(session) is None
    assert protocol_name(session) is None


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    assert protocol_version(data) is None or data.startswith(b"\x30")
    protocol_version(sequence(data))
