"""The protocol's bytes row by row: value types, and replies."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsmgr.wire import (
    ANNOUNCEMENT,
    BAD_REQUEST,
    FAILED,
    OK,
    Delete,
    Lookup,
    Policy,
    Request,
    Seed,
    TicketKey,
    Update,
    write_reply,
    write_seed,
    write_session,
)
from tlsmgr.wire.requests import parse_data, parse_number, parse_string

# ------------------------------------------------------------------------------------- value types

NUMBERS = [
    (b"5", 5),
    (b" 5", 5),
    (b"\t\n\v\f\r 5", 5),
    (b"+5", 5),
    (b" +5", 5),
    (b"005", 5),
    (b"0" * 5000 + b"9", 9),
    (b"0", 0),
    (b"-0", 0),
    (b"-1", -1),
    (b"4294967295", -1),
    (b"4294967294", -2),
    (b"2147483647", 2147483647),
    (b"2147483648", -2147483648),
    (b"4294967296", 0),
    (b"4294967328", 32),
    (b"-4294967264", 32),
    (b"18446744073709551615", -1),
    (b"18446744073709551616", -1),
    (b"18446744073709551648", -1),
    (b"9" * 5000, -1),
    (b"-" + b"9" * 30, -1),
    (b"-18446744073709551615", 1),
]

NO_NUMBERS = [
    b"", b" ", b"abc", b"5 ", b"5.0", b"0x10", b"32\n", b"5a", b"+", b"-", b"+-5", b"--5", b"- 5",
    b"1e3", b"\xd9\xa3", b"\xa05",
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS, ids=lambda x: repr(x)[:30])
def test_number(text: bytes, value: int) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_no_number(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^malformed numerical data$"):
        parse_number(text)


DATA = [
    (b"", b""),
    (b"YQ==", b"a"),
    (b"YWI=", b"ab"),
    (b"YWJj", b"abc"),
    (b"aGVsbG8=", b"hello"),
    (b"YQ==YQ==", b"a"),
    (b"YWI=junk", b"ab"),
    (b"YWI=\xff\n*=", b"ab"),
    (b"YQ=y", b"a"),
    (b"YR==", b"a"),
    (b"YWJ=", b"ab"),
    (b"YWJjYR==YWJj", b"abca"),
    (b"+/+/", b"\xfb\xff\xbf"),
]

NO_DATA = [
    b"a", b"ab", b"abc", b"YQ=", b"YQ", b"====", b"=abc", b"a===", b"ab*=", b"a\nbc", b"\n",
    b"YQ-_", b"YWJj=", b"YWJj====", b"YWJjY===", b"YQ==Y", b"\xff\xff\xff\xff",
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), DATA)
def test_data(text: bytes, value: bytes) -> None:
    assert parse_data(text) == value


@pytest.mark.parametrize("text", NO_DATA)
def test_no_data(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^malformed base64 data$"):
        parse_data(text)


@given(st.text("0123456789 +-x\t", max_size=24).map(str.encode))
def test_a_number_is_what_sscanf_reads(text: bytes) -> None:
    value, junk = ctypes.c_uint(), ctypes.c_char()
    count = ctypes.CDLL(None).sscanf(text, b"%u%c", ctypes.byref(value), ctypes.byref(junk))
    if count == 1:
        assert parse_number(text) == ctypes.c_int(value.value).value
    else:
        with pytest.raises(ValueError, match="numerical"):
            parse_number(text)


def decoded(text: bytes) -> bytes | None:
    """Decode a text by the rules of Postfix's base64_code.c, group by group."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    result = b""
    if len(text) % 4:
        return None
    for start in range(0, len(text), 4):
        group = text[start : start + 4]
        count = group.index(b"=") if b"=" in group else 4
        if count < 2 or any(character not in alphabet for character in group[:count]):
            return None
        bits = 0
        for character in group[:count]:
            bits = bits << 6 | alphabet.index(character)
        result += (bits << 6 * (4 - count)).to_bytes(3, "big")[: count - 1]
        if count < 4:
            break
    return result


@given(st.text("ABab+/09===*\n-", max_size=16).map(str.encode))
@settings(max_examples=500)
def test_data_is_what_the_rules_make_of_it(text: bytes) -> None:
    expected = decoded(text)
    if expected is not None:
        assert parse_data(text) == expected
    else:
        with pytest.raises(ValueError, match="base64"):
            parse_data(text)


@given(st.binary())
def test_string_is_any_bytes(text: bytes) -> None:
    assert parse_string(text) == text


# ----------------------------------------------------------------------------------------- replies

REPLIES = [
    ((Seed, OK, b"L3\x19\x86"), b"status\x000\x00seed\x00TDMZhg==\x00\x00"),
    ((Seed, FAILED), b"status\x004294967295\x00seed\x00\x00\x00"),
    ((Seed, BAD_REQUEST), b"status\x004294967294\x00seed\x00\x00\x00"),
    ((Policy, OK, True, 3600), b"status\x000\x00cachable\x001\x00timeout\x003600\x00\x00"),
    ((Policy, OK, False, 0), b"status\x000\x00cachable\x000\x00timeout\x000\x00\x00"),
    ((Policy, BAD_REQUEST), b"status\x004294967294\x00cachable\x000\x00timeout\x000\x00\x00"),
    ((Lookup, OK, b"hello"), b"status\x000\x00session\x00aGVsbG8=\x00\x00"),
    ((Lookup, OK, b""), b"status\x000\x00session\x00\x00\x00"),
    ((Lookup, FAILED), b"status\x004294967295\x00session\x00\x00\x00"),
    ((Lookup, BAD_REQUEST), b"status\x004294967294\x00session\x00\x00\x00"),
    ((Update, OK), b"status\x000\x00\x00"),
    ((Update, BAD_REQUEST), b"status\x004294967294\x00\x00"),
    ((Delete, OK), b"status\x000\x00\x00"),
    ((Delete, FAILED), b"status\x004294967295\x00\x00"),
    ((TicketKey, OK, bytes(88)), b"status\x000\x00keybuf\x00" + b"A" * 118 + b"==\x00\x00"),
    ((TicketKey, FAILED), b"status\x004294967295\x00keybuf\x00\x00\x00"),
    ((TicketKey, BAD_REQUEST), b"status\x004294967294\x00keybuf\x00\x00\x00"),
    ((None, BAD_REQUEST), b"status\x004294967294\x00\x00"),
]


@pytest.mark.parametrize(("arguments", "reply"), REPLIES, ids=lambda x: repr(x)[:60])
def test_reply(arguments: tuple[type[Request] | None, int], reply: bytes) -> None:
    assert write_reply(*arguments) == reply


@given(st.binary(max_size=300))
def test_the_fast_writers_write_the_same(data: bytes) -> None:
    assert write_seed(data) == write_reply(Seed, OK, data)
    assert write_session(data) == write_reply(Lookup, OK, data)


def test_announcement() -> None:
    assert ANNOUNCEMENT == b"protocol\x00tlsmgr_protocol\x00\x00"
    assert len(ANNOUNCEMENT) == 26
