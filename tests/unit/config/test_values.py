"""Value types: what each accepts, and the words for what it does not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsmgr.config.values import Kind, Value, convert
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
        (Kind.BYTES, "9223372036854775807", 9223372036854775807),
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
        (Kind.BYTES, "5", 1048576, None, "invalid name parameter value 5 < 1048576"),
        (Kind.BYTES, "1e9", 1, None, "bad numerical configuration: name = 1e9"),
        (
            Kind.BYTES,
            "9223372036854775808",
            None,
            None,
            "bad numerical configuration: name = 9223372036854775808",
        ),
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
