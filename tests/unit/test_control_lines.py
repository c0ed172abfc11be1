"""The lines of the control socket: requests are read as they were written, ids show any bytes."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsmgr.control_lines import (
    BadLine,
    ControlRequest,
    DropRequest,
    ListRequest,
    RotateRequest,
    StatusRequest,
    data_line,
    error_line,
    format_request,
    parse,
    quote,
    read_id,
    show_id,
)


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b"status", StatusRequest()),
        (b"rotate", RotateRequest()),
        (b"list smtp", ListRequest("smtp")),
        (b"list smtp match=", ListRequest("smtp", b"")),
        (b"list smtpd match=a=b", ListRequest("smtpd", b"a=b")),
        (b"list smtp match=%00%ff%25%20", ListRequest("smtp", b"\0\xff% ")),
        (b"drop lmtp all", DropRequest("lmtp", None)),
        (b"drop lmtp match=all", DropRequest("lmtp", b"all")),
    ],
)
def test_requests(line: bytes, request_: ControlRequest) -> None:
    assert parse(line) == request_
    assert parse(format_request(request_).encode()) == request_


@given(st.sampled_from(("smtp", "x")), st.binary(min_size=1, max_size=50))
def test_any_part_of_an_id_can_be_asked_for(cache_type: str, match: bytes) -> None:
    for request_ in (ListRequest(cache_type, match), DropRequest(cache_type, match)):
        assert parse(format_request(request_).encode()) == request_


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"", "unknown command:  (there are status, list, drop, rotate)"),
        (b"STATUS", "unknown command: STATUS "),
        (b" status", "unknown command: "),
        (b"status ", "wrong arguments; the request is: status"),
        (b"status\r", r"unknown command: status\r "),
        (b"status now", "wrong arguments; the request is: status"),
        (b"rotate all", "wrong arguments; the request is: rotate"),
        (b"list", "wrong arguments; the request is: list TYPE [match=TEXT]"),
        (b"list smtp all", "wrong arguments"),
        (b"list smtp match=a b", "wrong arguments"),
        (b"list  smtp", "wrong arguments"),
        (b"drop", "wrong arguments; the request is: drop TYPE match=TEXT, or drop TYPE all"),
        (b"drop smtp", "wrong arguments"),
        (b"drop smtp match=", "wrong arguments"),  # every id has an empty part
        (b"drop smtp everything", "wrong arguments"),
        (b"drop smtp match=100%", "a per cent sign stands before two hexadecimal digits"),
        (b"drop smtp match=%0g", "a per cent sign stands before"),
        (b"list smtp match=\xff", "the request has bytes that are not ASCII"),
        (b"x" * 200, "unknown command: " + "x" * 100 + "... "),
        (b"\0\x1b[31m", r"unknown command: \x00\x1b[31m "),
    ],
)
def test_no_request(line: bytes, text: str) -> None:
    with pytest.raises(BadLine) as error:
        parse(line)
    assert str(error.value).startswith(text)
    assert str(error.value).isprintable()


@given(st.binary(max_size=100))
def test_any_line_is_a_request_or_an_error(line: bytes) -> None:
    with contextlib.suppress(BadLine):
        request_ = parse(line)
        assert parse(format_request(request_).encode()) == request_


@given(st.binary(max_size=100))
def test_any_id_is_shown_and_read(cache_id: bytes) -> None:
    shown = show_id(cache_id)
    assert shown.isascii()
    assert shown.isprintable() or not shown
    assert " " not in shown
    assert read_id(shown.encode()) == cache_id


def test_ids_as_they_are_shown() -> None:
    assert show_id(b"smtp&example.com&\"'\\") == "smtp&example.com&\"'\\"
    assert show_id(b"a b%\n\x1b[2J\x7f\xc3\xbc") == "a%20b%25%0A%1B[2J%7F%C3%BC"


def test_replies() -> None:
    line = data_line({"id": 'a"b\\', "age_seconds": 1})
    assert line.endswith(b"}\n")
    assert b" " not in line
    assert json.loads(line) == {"id": 'a"b\\', "age_seconds": 1}
    assert error_line("it's \xfc") == b"error it's ?\n"


def test_quoted_text_is_short_and_printable() -> None:
    assert quote("a" * 100) == "a" * 100
    assert quote("a" * 101) == "a" * 100 + "..."
    assert quote("a\nb'") == r"a\nb'"
