"""values - from the expanded text of a parameter to its value: time, number, size, text or yes/no.

Pure functions. A bad value is fatal, with the text of Postfix's mail_conf_time.c, mail_conf_int.c,
mail_conf_str.c or mail_conf_bool.c. Numbers and times accept what strtol(3) accepts. Sizes, paths
and short times exist only among the parameters of our own, where `tlsmgr_cf` turns what is fatal
here into an error line.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tlsmgr.config.syntax import encode
from tlsmgr.log import Fatal

Value = str | int | bool

INT_LIMIT = 2**31 - 1

TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
"""Seconds of a time unit."""

SIZE_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
"""Bytes of a size unit; a value may have it in upper or lower case."""

_STRTOL = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)", re.ASCII)
_SHORT_TIME = re.compile(r"0*([0-9]{1,9})(ms|s)", re.ASCII)
_SIZE = re.compile(r"0*([0-9]{1,15})([kmg]?)", re.ASCII | re.IGNORECASE)


class Kind(Enum):
    """The type of a parameter."""

    TEXT = "text"
    NUMBER = "number"
    SIZE = "size"
    TIME = "time"
    SHORT_TIME = "short time"
    FLAG = "yes or no"
    PATH = "absolute path"
    CHOICE = "one of several words"


@dataclass(frozen=True)
class Parameter:
    """One row of the parameter table.

    `default` is written as in a configuration file; those of myhostname and mydomain depend on
    the machine. `purpose` is printed in the manual page. `minimum` and `maximum` bound a number, a
    size in bytes, a time in seconds, a short time in milliseconds, or the length of a text in
    bytes; None means no bound. `choices` are the values of a CHOICE, in lower case;
    `tlsmgr_cf` looks at them.
    """

    name: str
    kind: Kind
    default: str
    purpose: str
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()


def convert(kind: Kind, name: str, text: str, minimum: int | None, maximum: int | None) -> Value:
    """Return the value of parameter `name`, whose expanded text is `text`.

    The bounds are those of `Parameter`. The value is a str for TEXT, PATH and CHOICE, a bool
    for FLAG, otherwise an int: for SIZE in bytes, for TIME in seconds, for SHORT_TIME in
    milliseconds. Raise Fatal for a bad value.
    """
    return _CONVERSIONS[kind](name, text, minimum, maximum)


def size_text(size: int) -> str:
    """Return a size in the largest unit that divides it, as in `64M`."""
    unit = max(
        (unit for unit, n in SIZE_UNITS.items() if size % n == 0), key=SIZE_UNITS.__getitem__
    )
    return f"{size // SIZE_UNITS[unit]}{unit}"


def _text(name: str, text: str, minimum: int | None, maximum: int | None) -> str:
    length = len(encode(text))
    if minimum is not None and length < minimum:
        raise Fatal(f"bad string length {length} < {minimum}: {name} = {text}")
    if maximum is not None and length > maximum:
        raise Fatal(f"bad string length {length} > {maximum}: {name} = {text}")
    return text


def _number(name: str, text: str, minimum: int | None, maximum: int | None) -> int:
    """Return a decimal number that fits a C int."""
    value, rest = _strtol(text)
    if not text or rest or not -INT_LIMIT - 1 <= value <= INT_LIMIT:
        raise Fatal(f"bad numerical configuration: {name} = {text}")
    return _bounded(name, value, minimum, maximum)


def _size(name: str, text: str, minimum: int | None, maximum: int | None) -> int:
    """Return the bytes of a number with the suffix k, M, G or none."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Fatal(f"bad size: {name} = {text}")
    unit = match[2].lower() if match[2] in "kK" else match[2].upper()
    return _bounded(name, int(match[1]) * SIZE_UNITS[unit], minimum, maximum)


def _bounded(name: str, value: int, minimum: int | None, maximum: int | None) -> int:
    if minimum is not None and value < minimum:
        raise Fatal(f"invalid {name} parameter value {value} < {minimum}")
    if maximum is not None and value > maximum:
        raise Fatal(f"invalid {name} parameter value {value} > {maximum}")
    return value


def _time(name: str, text: str, minimum: int | None, maximum: int | None) -> int:
    """Return the seconds of a number with a unit; without a unit it is in seconds.

    As in Postfix's conv_time.c, only the first character behind the number counts, and a missing
    number is zero: `10sfoo` is ten seconds.
    """
    value, rest = _strtol(text)
    unit = TIME_UNITS.get(rest[:1] or "s", 0)
    if not text or not unit or not 0 <= value <= INT_LIMIT:
        raise Fatal(f"parameter {name}: bad time value or unit: {text}")
    if unit > 1 and value >= INT_LIMIT // unit:
        raise Fatal(f"parameter {name}: bad time value or unit: {text}")
    seconds = value * unit
    if minimum is not None and seconds < minimum:
        raise Fatal(f"invalid {name}: {seconds} (min {minimum})")
    if maximum is not None and seconds > maximum:
        raise Fatal(f"invalid {name}: {seconds} (max {maximum})")
    return seconds


def _short_time(name: str, text: str, minimum: int | None, maximum: int | None) -> int:
    """Return the milliseconds of a number with the unit ms or s."""
    match = _SHORT_TIME.fullmatch(text)
    if match is None:
        raise Fatal(f"bad time: {name} = {text}")
    return _bounded(name, int(match[1]) * (1000 if match[2] == "s" else 1), minimum, maximum)


def _flag(name: str, text: str, _minimum: int | None, _maximum: int | None) -> bool:
    """Return whether the text is `yes`; the other good value is `no`, both in any case."""
    word = text.lower()
    if word not in ("yes", "no"):
        raise Fatal(f"bad boolean configuration: {name} = {text}")
    return word == "yes"


def _path(name: str, text: str, _minimum: int | None, _maximum: int | None) -> str:
    """Return an absolute path, or an empty text."""
    if text and not text.startswith("/"):
        raise Fatal(f"not an absolute path: {name} = {text}")
    return text


_CONVERSIONS: dict[Kind, Callable[[str, str, int | None, int | None], Value]] = {
    Kind.TEXT: _text,
    Kind.NUMBER: _number,
    Kind.SIZE: _size,
    Kind.TIME: _time,
    Kind.SHORT_TIME: _short_time,
    Kind.FLAG: _flag,
    Kind.PATH: _path,
    Kind.CHOICE: _text,
}


def _strtol(text: str) -> tuple[int, str]:
    """Return the number that a text starts with, and the rest; zero and the text without one.

    A number of more than 20 digits is cut to 20, which is still too large for any C type.
    """
    match = _STRTOL.match(text)
    if match is None:
        return 0, text
    return int(match[1] + match[2][:20]), text[match.end() :]
