"""Requests: the two readers against each other, what is refused, and the end of the input."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import raw_client
from support.complaints import MISSING, UNEXPECTED, VALUE, end_of_input
from support.reader_events import events_of, pieces

from tlsmgr.wire import (
    Delete,
    Event,
    InputWarning,
    Lookup,
    Malformed,
    Policy,
    Request,
    RequestReader,
    Seed,
    TicketKey,
    Update,
    WakeUp,
    read_whole,
)
from tlsmgr.wire.requests import REQUEST_SPECS

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
    + [name + b"\0" for name in REQUEST_SPECS]
)  # fmt: skip
soup = st.lists(st.one_of(fragments, st.binary(max_size=6)), max_size=40).map(b"".join)
# Any terminated list: names and values of which some are those that a request has.
wordy_names = st.one_of(
    names, st.sampled_from([b"request", b"size", b"cache_type", b"cache_id", b"session"])
)
wordy_values = st.one_of(texts, st.sampled_from([*REQUEST_SPECS, b"4", b"YQ==", b"smtp"]))
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


def test_a_trailing_attribute_is_a_warning_and_the_request_is_served() -> None:
    data = b"request\0policy\0cache_type\0smtp\0extra\x001\0more\x002\0\0"
    warning = InputWarning(UNEXPECTED.format("extra", "(list terminator)"))
    for segments in ([data], pieces(data, 1), [data, raw_client.seed(4)]):
        assert events_of(segments)[:2] == [warning, Policy(b"smtp")]
    assert events_of([data, raw_client.seed(4)])[2:] == [Seed(4)]


def test_a_trailing_attribute_without_a_value_does_not_end_the_list() -> None:
    data = b"request\0policy\0cache_type\0smtp\0extra\0\0more\x002\0\0"
    warning = InputWarning(UNEXPECTED.format("extra", "(list terminator)"))
    expected = [warning, Policy(b"smtp"), Seed(4)]
    assert events_of([data + raw_client.seed(4)]) == expected
    assert events_of(pieces(data + raw_client.seed(4), 1)) == expected


def test_a_refused_list_without_an_end_does_not_swallow_the_next_segment() -> None:
    for bad in (b"request\0seed\0size\0abc\0", b"request\0frob\0", b"rubbish\0x\0", b"reqest\0"):
        assert events_of([bad, raw_client.seed(4)])[-1] == Seed(4)
        assert len(events_of([bad, raw_client.seed(4)])) == 2


@pytest.mark.parametrize("begun", [b"x", b"name", b"name\0x", b"name\0value\0name"])
def test_a_segment_in_the_middle_of_a_refused_list_s_field_is_the_rest_of_that_field(
    begun: bytes,
) -> None:
    """It begins like a request, but only because the field was cut there."""
    rest = b"request\0seed\0size\x004\0\0"
    if begun.count(b"\0") % 2:  # the empty field is a value then, and no end of the list
        rest += b"\0"
    bad = refusal(None, 'unknown request "frob" from tlsmgr socket')
    assert events_of([b"request\0frob\0" + begun, rest]) == bad
    assert events_of([b"request\0frob\0" + begun, rest, raw_client.seed(7)]) == [*bad, Seed(7)]


@pytest.mark.parametrize("stray", [b"\0", b"\0\0"])
def test_one_or_two_stray_nuls_are_forgotten(stray: bytes) -> None:
    assert events_of([stray]) == []
    assert events_of([stray, raw_client.seed(4)]) == [Seed(4)]
    assert events_of([*pieces(stray, 1), raw_client.seed(4)]) == [Seed(4)]


def test_three_stray_nuls_are_an_empty_list() -> None:
    assert events_of([b"\0\0\0"]) == refusal(None, MISSING.format("request"))


@pytest.mark.parametrize("length", range(1, len(raw_client.seed(4))))
def test_a_reader_with_a_part_of_a_request_is_not_idle(length: int) -> None:
    reader = RequestReader()
    reader.receive(raw_client.seed(4)[:length])
    assert reader.next_event() is None
    assert not reader.is_idle
    reader.receive(raw_client.seed(4)[length:])
    assert reader.next_event() == Seed(4)
    assert reader.next_event() is None
    assert reader.is_idle


def test_a_reader_with_a_request_that_is_held_back_is_not_idle() -> None:
    reader = RequestReader()
    reader.receive(b"request\0policy\0cache_type\0smtp\0extra\x001\0\0")
    assert isinstance(reader.next_event(), InputWarning)
    assert not reader.is_idle
    assert reader.next_event() == Policy(b"smtp")


def test_the_next_request_is_read_even_if_the_refused_one_was_not_read_to_its_end() -> None:
    reader = RequestReader()
    reader.receive(b"request\0seed\0size\0abc\0")
    assert isinstance(reader.next_event(), Malformed)
    reader.receive(raw_client.seed(4))
    assert reader.next_event() == Seed(4)
    assert reader.next_event() is None


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
    text = end_of_input(PARTIAL[:length])
    assert ending == (InputWarning(text) if length < HEAD else Malformed(Update, text))


@pytest.mark.parametrize("stray", [b"W", b"\0", b"\0\0"])
def test_end_of_input_behind_stray_bytes_is_silent(stray: bytes) -> None:
    reader = RequestReader()
    reader.receive(stray)
    assert reader.next_event() is None
    assert reader.end_of_input() is None


def test_end_of_input_behind_what_was_answered_is_silent() -> None:
    for data in (b"request\0seed\0size\0abc\0", b"request\0policy\0cache_type\0smtp\0extra\x001"):
        reader = RequestReader()
        reader.receive(data)
        while reader.next_event() is not None:
            pass
        assert reader.end_of_input() is None
