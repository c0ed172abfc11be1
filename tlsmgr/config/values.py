"""From the expanded text of a parameter to its value: time, number, text or yes/no.

Pure functions. Whatever is wrong with a value is fatal, in the words of Postfix's mail_conf_time.c,
mail_conf_int.c, mail_conf_long.c, mail_conf_str.c and mail_conf_bool.c; this module states what
they accept, which is that of strtol(3).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tlsmgr.config.syntax import encode
from tlsmgr.log import Fatal

Value = str | int | bool

INT_LIMIT = 2**31 - 1
LONG_LIMIT = 2**63 - 1

STRTOL = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)", re.ASCII)

TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
"""Seconds of a time unit."""


class Kind(Enum):
    """The type of a parameter; the value is what a manual page calls it."""

    TEXT = "text"
    NUMBER = "number"
    BYTES = "bytes"
    TIME = "time"
    FLAG = "yes or no"


@dataclass(frozen=True)
class Parameter:
    """One row: name, type, default as in a configuration file, what it is for, and bounds.

    Bounds are for a number, the seconds of a time, or the length of a text; None for none. The
    defaults of myhostname and mydomain are worked out at start.
    """

    name: str
    kind: Kind
    default: str
    purpose: str
    minimum: int | None = None
    maximum: int | None = None


def convert(kind: Kind, name: str, text: str, minimum: int | None, maximum: int | None) -> Value:
    """The value of parameter `name` whose expanded text is `text`.

    `minimum` and `maximum` bound a number, the seconds of a time, or the length of a text in
    bytes; None means unbounded. Returns str for TEXT, int for NUMBER and BYTES, int (seconds) for
    TIME, bool for FLAG.
    """
    return CONVERSIONS[kind](name, text, minimum, maximum)


def convert_text(name: str, text: str, minimum: int | None, maximum: int | None) -> str:
    """Any text of the right length."""
    length = len(encode(text))
    if minimum is not None and length < minimum:
        raise Fatal(f"bad string length {length} < {minimum}: {name} = {text}")
    if maximum is not None and length > maximum:
        raise Fatal(f"bad string length {length} > {maximum}: {name} = {text}")
    return text


def convert_number(name: str, text: str, minimum: int | None, maximum: int | None) -> int:
    """A decimal number that fits a C int."""
    return bounded_number(name, text, minimum, maximum, INT_LIMIT)


def convert_bytes(name: str, text: str, minimum: int | None, maximum: int | None) -> int:
    """A decimal number that fits a C long."""
    return bounded_number(name, text, minimum, maximum, LONG_LIMIT)


def bounded_number(
    name: str, text: str, minimum: int | None, maximum: int | None, limit: int
) -> int:
    """A decimal number from -limit - 1 to limit, within the parameter's own bounds."""
    value, rest = strtol(text)
    if not text or rest or not -limit - 1 <= value <= limit:
        raise Fatal(f"bad numerical configuration: {name} = {text}")
    if minimum is not None and value < minimum:
        raise Fatal(f"invalid {name} parameter value {value} < {minimum}")
    if maximum is not None and value > maximum:
        raise Fatal(f"invalid {name} parameter value {value} > {maximum}")
    return value


def convert_time(name: str, text: str, minimum: int | None, maximum: int | None) -> int:
    """A number and a unit (default: seconds), in seconds.

    Of what follows the number only the first character counts, and no number at all is zero, as
    in Postfix conv_time.c: `10sfoo` is ten seconds.
    """
    value, rest = strtol(text)
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


def convert_flag(name: str, text: str, _minimum: int | None, _maximum: int | None) -> bool:
    """`yes` or `no`, in any case."""
    word = text.lower() if text.isascii() else text
    if word not in ("yes", "no"):
        raise Fatal(f"bad boolean configuration: {name} = {text}")
    return word == "yes"


CONVERSIONS: dict[Kind, Callable[[str, str, int | None, int | None], Value]] = {
    Kind.TEXT: convert_text,
    Kind.NUMBER: convert_number,
    Kind.BYTES: convert_bytes,
    Kind.TIME: convert_time,
    Kind.FLAG: convert_flag,
}


def strtol(text: str) -> tuple[int, str]:
    """The number that a text starts with, and the rest; zero and all of the text without one.

    A number of more than 20 digits comes out wrong but too large for any C type.
    """
    match = STRTOL.match(text)
    if match is None:
        return 0, text
    return int(match[1] + match[2][:20]), text[match.end() :]
