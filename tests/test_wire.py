"""The protocol's bytes: value types row by row, and the two readers against each other."""

from __future__ import annotations

import ctypes
import itertools
import tracemalloc
from collections.abc import Callable, Iterable

import pytest
import raw_client
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tlsmgr.wire import (
    ANNOUNCEMENT,
    BAD_REQUEST,
    FAILED,
    OK,
    REQUEST_LIMIT,
    Delete,
    Event,
    Lookup,
    Malformed,
    Policy,
    Remark,
    Request,
    RequestReader,
    Seed,
    TicketKey,
    Update,
    WakeUp,
    read_whole,
    write_reply,
    write_seed,
    write_session,
)
from tlsmgr.wire.forms import FORMS, parse_data, parse_number, parse_string

SEGMENT = 32768

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
    """What the rules of Postfix's base64_code.c make of a text, group by group."""
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


# ---------------------------------------------------------------------------------------- requests

WRITERS: dict[type, Callable[..., bytes]] = {
    Seed: raw_client.seed,
    Policy: raw_client.policy,
    Lookup: raw_client.lookup,
    Update: raw_client.update,
    Delete: raw_client.delete,
    TicketKey: raw_client.tktkey,
}


def write(request: Request) -> bytes:
    """The bytes of a request."""
    return WRITERS[type(request)](*request)


def events_of(segments: Iterable[bytes]) -> list[Event]:
    """What a fresh reader makes of these segments."""
    reader = RequestReader()
    events: list[Event] = []
    for segment in segments:
        reader.receive(segment)
        while (event := reader.next_event()) is not None:
            events.append(event)
    return events


def pieces(data: bytes, size: int) -> list[bytes]:
    """The data in segments of ``size`` bytes."""
    return [data[start : start + size] for start in range(0, len(data), size)]


texts = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b""))
names = texts.filter(lambda text: text not in (b"", b"W"))
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(Seed, st.integers(-(2**31), 2**31 - 1)),
    st.builds(Policy, texts),
    st.builds(Lookup, texts, texts),
    st.builds(Update, texts, texts, st.binary(max_size=100)),
    st.builds(Delete, texts, texts),
    st.builds(TicketKey, st.binary(max_size=20)),
)
fragments = st.sampled_from(
    [b"\0", b"\0\0", b"W\0", b"request\0", b"=", b"YQ==\0", b"4\0", b"5 \0", b"smtp\0", b"{\0",
     b"size\0", b"cache_type\0", b"cache_id\0", b"session\0", b"keyname\0"]
    + [name + b"\0" for name in FORMS]
)  # fmt: skip
soup = st.lists(st.one_of(fragments, st.binary(max_size=6)), max_size=40).map(b"".join)
# Any terminated list: names and values of which some are those that a request has.
wordy_names = st.one_of(
    names, st.sampled_from([b"request", b"size", b"cache_type", b"cache_id", b"session"])
)
wordy_values = st.one_of(texts, st.sampled_from([*FORMS, b"4", b"YQ==", b"smtp"]))
terminated = st.one_of(
    requests.map(write),
    st.lists(st.tuples(wordy_names, wordy_values), min_size=1, max_size=6).map(
        lambda pairs: raw_client.attributes(*pairs)
    ),
)


@given(requests)
def test_a_request_is_read_whole_as_it_was_written(request: Request) -> None:
    assert read_whole(write(request)) == request


# A request, and somewhere in it, or behind it, something else; or without its end.
altered = st.builds(
    lambda data, at, more: data[:at] + more + data[at:],
    requests.map(write),
    st.integers(-60, 200),
    st.one_of(fragments, requests.map(write), st.binary(max_size=3)),
)
cut = st.builds(lambda data, at: data[:at], requests.map(write), st.integers(-3, -1))


@given(st.integers(-5, 300))
def test_the_seeds_that_are_known_at_sight_are_those_that_the_reader_reads(size: int) -> None:
    data = write(Seed(size))
    assert [read_whole(data)] == [Seed(size)] == events_of([data])


@given(st.one_of(requests.map(write), altered, cut, terminated, soup))
@example(b"request\0seed\0size\x004\0\0")
@example(b"request\0update\0cache_type\0\0cache_id\0\0session\0YQ==\0\0\0\0")
@example(b"request\0update\0cache_type\0\0cache_id\0\0session\0YQ==YQ\0\0")
@example(b"request\0update\0cache_type\0\0cache_id\0\0session\0YQ==\0x\0y\0\0")
@example(b"request\0update\0cache_type\0\0cache_id\0\0session\0\0\0")
@example(b"request\0update\0cache_type\0\0cache_id\0\0session\0\0")
@example(b"request\0seed\0size\x004\0x")
@example(b"request\0seed\0size\x004\0\0\0")
def test_what_is_read_whole_is_what_the_reader_says(data: bytes) -> None:
    request = read_whole(data)
    if request is None:
        return
    reader = RequestReader()
    reader.receive(data)
    assert reader.next_event() == request
    assert reader.next_event() is None
    assert reader.is_idle
    assert reader.end_of_input() is None


@given(soup, st.lists(st.integers(0, 200), max_size=8))
@settings(max_examples=300)
def test_any_bytes_in_any_segments_are_events(data: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(data)]
    reader = RequestReader()
    for start, end in itertools.pairwise(bounds):
        reader.receive(data[start:end])
        while (event := reader.next_event()) is not None:
            assert isinstance(event, Event)
    ending = reader.end_of_input()
    assert not isinstance(ending, Malformed) or (ending.shape is not None and not ending.final)


@given(st.lists(terminated, max_size=5).map(b"".join))
@settings(max_examples=300)
def test_terminated_lists_mean_the_same_in_any_segments(data: bytes) -> None:
    whole = events_of([data])
    assert events_of(pieces(data, 1)) == whole
    assert events_of(pieces(data, 7)) == whole


@given(st.lists(requests, max_size=6), st.integers(1, 50))
def test_a_pipeline_is_its_requests_in_order(many: list[Request], size: int) -> None:
    data = b"".join(write(request) for request in many)
    assert events_of(pieces(data, size)) == many


# ----------------------------------------------------------------------------------------- refusal


def refusal(shape: type[Request] | None, complaint: str) -> list[Event]:
    """The one event that a malformed list is."""
    return [Malformed(shape, complaint)]


MISSING = "missing attribute {} in input from tlsmgr socket"
UNEXPECTED = "unexpected attribute {} from tlsmgr socket (expecting: {})"
VALUE = "malformed {} data from tlsmgr socket while reading input attribute value: {}"

REFUSED = [
    (b"reqest\0policy\0cache_type\0smtp\0\0", None, UNEXPECTED.format("reqest", "request")),
    (b"\0rubbish\0x\0\0", None, MISSING.format("request")),
    (b"request\0frob\0size\x004\0\0", None, 'unknown request "frob" from tlsmgr socket'),
    (b"request\0\0size\x004\0\0", None, 'unknown request "" from tlsmgr socket'),
    (b"request\0POLICY\0cache_type\0smtp\0\0", None, 'unknown request "POLICY" from tlsmgr socket'),
    (b"request\0seed\0\0", Seed, MISSING.format("size")),
    (b"request\0seed\0size\0abc\0\0", Seed, VALUE.format("numerical", "abc")),
    (b"request\0seed\0size\0" + b"x" * 300 + b"\0\0", Seed, VALUE.format("numerical", "x" * 100)),
    (b"request\0policy\0\0", Policy, MISSING.format("cache_type")),
    (b"request\0policy\0cachetype\0smtp\0\0", Policy, UNEXPECTED.format("cachetype", "cache_type")),
    (b"request\0lookup\0cache_type\0smtp\0\0", Lookup, MISSING.format("cache_id")),
    (
        b"request\0lookup\0cache_id\0x\0cache_type\0smtp\0\0",
        Lookup,
        UNEXPECTED.format("cache_id", "cache_type"),
    ),
    (b"request\0lookup\0{\0cache_type\0smtp\0}\0\0", Lookup, UNEXPECTED.format("{", "cache_type")),
    (
        b"request\0update\0cache_type\0smtp\0cache_id\0x\0session\0ab*=\0\0",
        Update,
        VALUE.format("base64", "(4 bytes)"),
    ),
    (b"request\0update\0cache_type\0smtp\0cache_id\0x\0\0", Update, MISSING.format("session")),
    (b"request\0delete\0cache_type\0smtp\0\0", Delete, MISSING.format("cache_id")),
    (b"request\0tktkey\0\0", TicketKey, MISSING.format("keyname")),
    (b"request\0tktkey\0keyname\0a\0\0", TicketKey, VALUE.format("base64", "(1 bytes)")),
]


@pytest.mark.parametrize(("data", "shape", "complaint"), REFUSED)
def test_refusal(data: bytes, shape: type[Request] | None, complaint: str) -> None:
    good = raw_client.seed(4)
    assert read_whole(data) is None
    assert events_of([data]) == refusal(shape, complaint)
    assert events_of([data + good]) == [*refusal(shape, complaint), Seed(4)]
    assert events_of([data, good]) == [*refusal(shape, complaint), Seed(4)]
    assert events_of(pieces(data + good, 1)) == [*refusal(shape, complaint), Seed(4)]


def test_a_trailing_attribute_is_worth_a_remark() -> None:
    data = b"request\0policy\0cache_type\0smtp\0extra\x001\0more\x002\0\0"
    remark = Remark(UNEXPECTED.format("extra", "(list terminator)"))
    for segments in ([data], pieces(data, 1), [data, raw_client.seed(4)]):
        assert events_of(segments)[:2] == [remark, Policy(b"smtp")]
    assert events_of([data, raw_client.seed(4)])[2:] == [Seed(4)]


def test_a_refused_list_without_an_end_does_not_swallow_the_next_segment() -> None:
    for bad in (b"request\0seed\0size\0abc\0", b"request\0frob\0", b"rubbish\0x\0", b"reqest\0"):
        assert events_of([bad, raw_client.seed(4)])[-1] == Seed(4)
        assert len(events_of([bad, raw_client.seed(4)])) == 2


@pytest.mark.parametrize("stray", [b"\0", b"\0\0"])
def test_one_or_two_stray_nuls_are_forgotten(stray: bytes) -> None:
    assert events_of([stray]) == []
    assert events_of([stray, raw_client.seed(4)]) == [Seed(4)]
    assert events_of([*pieces(stray, 1), raw_client.seed(4)]) == [Seed(4)]


def test_the_wake_up_is_known_by_its_content() -> None:
    assert events_of([b"W\0"]) == [WakeUp()]
    assert events_of([b"W", b"\0"]) == [WakeUp()]
    assert events_of([b"W"]) == []
    assert events_of([b"X\0"]) != [WakeUp()]
    assert isinstance(events_of([b"W\0x\0\0"])[0], Malformed)
    assert events_of([b"r", raw_client.seed(4)[1:]]) == [Seed(4)]
    assert events_of([b"re", raw_client.seed(4)[2:]]) == [Seed(4)]


# ------------------------------------------------------------------------------------ end of input

PARTIAL = raw_client.update(b"smtp", b"id", b"hello")
HEAD = len(b"request\0update\0")


@pytest.mark.parametrize("length", range(len(PARTIAL)))
def test_end_of_input_in_the_middle(length: int) -> None:
    reader = RequestReader()
    reader.receive(PARTIAL[:length])
    assert reader.next_event() is None
    ending = reader.end_of_input()
    if length == 0:
        assert ending is None
        return
    at_start = PARTIAL[length - 1 : length] == b"\0"
    expected = "premature end-of-input on" if at_start else "unexpected end-of-input from"
    fields = PARTIAL[:length].count(b"\0")
    part = "value" if fields % 2 else "name"
    text = f"{expected} tlsmgr socket while reading input attribute {part}"
    assert ending == (Remark(text) if length < HEAD else Malformed(Update, text))


def test_end_of_input_behind_what_was_answered_is_silent() -> None:
    for data in (b"request\0seed\0size\0abc\0", b"request\0policy\0cache_type\0smtp\0extra\x001"):
        reader = RequestReader()
        reader.receive(data)
        while reader.next_event() is not None:
            pass
        assert reader.end_of_input() is None


# ------------------------------------------------------------------------------------------ bounds


def update_of(size: int) -> bytes:
    """An update request of exactly so many bytes."""
    frame = raw_client.update(b"smtp", b"", b"")
    cache_id = b"i" * ((size - len(frame)) % 4)
    frame = raw_client.update(b"smtp", cache_id, b"")
    return frame[:-2] + b"A" * (size - len(frame)) + b"\0\0"


@pytest.mark.parametrize("size", range(REQUEST_LIMIT - 4, REQUEST_LIMIT + 5))
def test_the_limit_of_a_request_is_exact(size: int) -> None:
    data = update_of(size)
    assert len(data) == size
    events = events_of(pieces(data, SEGMENT))
    if size <= REQUEST_LIMIT:
        assert [type(event) for event in events] == [Update]
    else:
        complaint = f"request from tlsmgr socket over {REQUEST_LIMIT} bytes"
        assert events == [Malformed(Update, complaint, final=True)]


@pytest.mark.parametrize("where", [b"", b"request\0update\0cache_type\0", b"request\0", b"re"])
def test_an_endless_field_is_refused_in_time(where: bytes) -> None:
    reader = RequestReader()
    reader.receive(where)
    fed = len(where)
    while (event := reader.next_event()) is None:
        assert fed <= REQUEST_LIMIT
        reader.receive(b"a" * SEGMENT)
        fed += SEGMENT
    assert isinstance(event, Malformed)
    assert event.final
    assert REQUEST_LIMIT < fed <= REQUEST_LIMIT + SEGMENT


def feed_without_end(head: bytes, segment: bytes) -> int:
    """Feed a reader 2 MiB; returns the most memory that took, in bytes."""
    reader = RequestReader()
    reader.receive(head)
    while reader.next_event() is not None:
        pass
    tracemalloc.start()
    try:
        for _ in range((2 << 20) // SEGMENT):
            reader.receive(segment)
            while reader.next_event() is not None:
                pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_junk_that_is_skipped_is_not_held() -> None:
    assert feed_without_end(b"request\0seed\0size\0abc\0", b"j" * SEGMENT) < 8 * SEGMENT
    assert feed_without_end(b"request\0frob\0", b"some junk\0" * (SEGMENT // 10)) < 8 * SEGMENT
    trailing = b"request\0policy\0cache_type\0smtp\0extra\0"
    assert feed_without_end(trailing, b"j" * SEGMENT) < 8 * SEGMENT


def test_a_complaint_quotes_no_secret() -> None:
    """A session or a key's name is told by its length."""
    for head in (b"update\0cache_type\0smtp\0cache_id\0x\0session\0", b"tktkey\0keyname\0"):
        event = events_of([b"request\0" + head + b"c2VjcmV0*\0\0"])[0]
        assert isinstance(event, Malformed)
        assert event.complaint.endswith("value: (9 bytes)")


def test_a_complaint_quotes_a_hundred_bytes_at_most() -> None:
    long = b"\xff" * 10000
    for data in (
        long + b"\0x\0\0",
        b"request\0" + long + b"\0\0",
        b"request\0seed\0" + long + b"\0x\0\0",
        b"request\0seed\0size\0" + long + b"\0\0",
        b"request\0seed\0size\x004\0" + long + b"\0x\0\0",
    ):
        event = events_of([data])[0]
        assert isinstance(event, Malformed | Remark)
        text = event.complaint if isinstance(event, Malformed) else event.text
        assert text.count("\udcff") == 100


def test_no_session_in_a_repr() -> None:
    assert "secret" not in repr(Update(b"smtp", b"id", b"secret session"))
