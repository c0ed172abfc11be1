"""Value types: what each accepts, and the texts for what it does not accept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsmgr.config.values import Kind, Value, convert, size_text
from tlsmgr.log import Fatal


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Kind.TIME, "0", 0),
        (Kind.TIME, "300", 300),
        (Kind.TIME, "+5", 5),
        (Kind.TIME, "-0", 0),
        (Kind.TIME, " 5", 5),
        (Kind.TIME, "007s", 7),
        (Kind.TIME, "2m", 120),
        (Kind.TIME, "2h", 7200),
        (Kind.TIME, "2d", 172800),
        (Kind.TIME, "2w", 1209600),
        (Kind.TIME, "10sfoo", 10),
        (Kind.TIME, "1d2h", 86400),
        (Kind.TIME, "s", 0),
        (Kind.TIME, "2147483647", 2147483647),
        (Kind.TIME, "35791393m", 2147483580),
        (Kind.NUMBER, "0", 0),
        (Kind.NUMBER, "-5", -5),
        (Kind.NUMBER, "+5", 5),
        (Kind.NUMBER, "010", 10),
        (Kind.NUMBER, "2147483647", 2147483647),
        (Kind.NUMBER, "-2147483648", -2147483648),
        (Kind.SHORT_TIME, "50ms", 50),
        (Kind.SHORT_TIME, "2s", 2000),
        (Kind.SIZE, "0", 0),
        (Kind.SIZE, "1048576", 1048576),
        (Kind.SIZE, "3k", 3072),
        (Kind.SIZE, "3K", 3072),
        (Kind.SIZE, "64M", 67108864),
        (Kind.SIZE, "064m", 67108864),
        (Kind.SIZE, "2G", 2147483648),
        (Kind.SIZE, "2g", 2147483648),
        (Kind.SIZE, "999999999999999", 999999999999999),
        (Kind.TEXT, "", ""),
        (Kind.TEXT, "any text", "any text"),
        (Kind.FLAG, "yes", True),
        (Kind.FLAG, "No", False),
        (Kind.FLAG, "YES", True),
    ],
)
def test_good_values(kind: Kind, text: str, value: Value) -> None:
    result = convert(kind, "name", text, None, None)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "bound"),
    [(Kind.TIME, "100d", 8640000), (Kind.NUMBER, "8", 8), (Kind.SIZE, "1k", 1024)],
)
def test_bounds_are_good_values(kind: Kind, text: str, bound: int) -> None:
    assert convert(kind, "name", text, bound, bound) == bound


def test_bounds_of_a_text_are_good_lengths() -> None:
    assert convert(Kind.TEXT, "name", "üü", 4, 4) == "üü"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "10S",
        "10 s",
        "1.5h",
        "0x10",
        "-1",
        "-1s",
        "- 1",
        "2147483648",
        "35791394m",
        "9" * 30,
        "9" * 5000,
        "99999999999999999999s",
        "5\udcfc",
    ],
)
def test_bad_times(text: str) -> None:
    with pytest.raises(Fatal) as caught:
        convert(Kind.TIME, "name", text, 1, None)
    assert caught.value.text == f"parameter name: bad time value or unit: {text}"


@pytest.mark.parametrize(
    "text", ["", "x", "5s", "5 ", "0x5", "2147483648", "-2147483649", "9" * 30, "1.0"]
)
def test_bad_numbers(text: str) -> None:
    with pytest.raises(Fatal) as caught:
        convert(Kind.NUMBER, "name", text, 1, None)
    assert caught.value.text == f"bad numerical configuration: name = {text}"


@pytest.mark.parametrize(
    "text",
    ["", "x", "M", "100X", "1kB", "1.5G", "64 M", "-1", "+1", "1T", "1\u212a", "\u0661", "9" * 16],
)
def test_bad_sizes(text: str) -> None:
    with pytest.raises(Fatal) as caught:
        convert(Kind.SIZE, "name", text, 1, None)
    assert caught.value.text == f"bad size: name = {text}"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1"),
        (1023, "1023"),
        (1024, "1k"),
        (1536, "1536"),
        (1 << 20, "1M"),
        (3 << 29, "1536M"),
        (1 << 40, "1024G"),
    ],
)
def test_a_size_is_shown_in_its_largest_unit(size: int, text: str) -> None:
    assert size_text(size) == text
    assert convert(Kind.SIZE, "name", text, None, None) == size


@pytest.mark.parametrize("text", ["", "true", "1", "yes ", "ye\u017f"])
def test_bad_flags(text: str) -> None:
    with pytest.raises(Fatal) as caught:
        convert(Kind.FLAG, "name", text, None, None)
    assert caught.value.text == f"bad boolean configuration: name = {text}"


@pytest.mark.parametrize(
    ("kind", "text", "minimum", "maximum", "message"),
    [
        (Kind.TIME, "8640001", 0, 8640000, "invalid name: 8640001 (max 8640000)"),
        (Kind.TIME, "100d1h", None, 8639999, "invalid name: 8640000 (max 8639999)"),
        (Kind.TIME, "0", 1, None, "invalid name: 0 (min 1)"),
        (Kind.NUMBER, "0", 1, None, "invalid name parameter value 0 < 1"),
        (Kind.NUMBER, "-1", 0, 512, "invalid name parameter value -1 < 0"),
        (Kind.NUMBER, "9", 1, 8, "invalid name parameter value 9 > 8"),
        (Kind.SIZE, "1k", 1025, None, "invalid name parameter value 1024 < 1025"),
        (Kind.SIZE, "1k", 1024, 1023, "invalid name parameter value 1024 > 1023"),
        (Kind.TEXT, "", 1, None, "bad string length 0 < 1: name = "),
        (Kind.TEXT, "üü", None, 3, "bad string length 4 > 3: name = üü"),
    ],
)
def test_bounds(
    kind: Kind, text: str, minimum: int | None, maximum: int | None, message: str
) -> None:
    with pytest.raises(Fatal) as caught:
        convert(kind, "name", text, minimum, maximum)
    assert caught.value.text == message


@settings(deadline=None)
@given(st.sampled_from(Kind), st.text())
def test_any_text_is_a_value_or_fatal(kind: Kind, text: str) -> None:
    try:
        value = convert(kind, "name", text, None, None)
    except Fatal as error:
        value = error.text[-len(text) :] if text else ""
    assert isinstance(value, int) or value == text


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_every_c_int_is_a_number_and_a_time(number: int) -> None:
    assert convert(Kind.NUMBER, "name", str(number), None, None) == number
    assert convert(Kind.TIME, "name", f"{number}s", None, None) == number
