"""$-expansion of parameter values, as Postfix does it.

Pure functions: a value and the names known so far go in, the expanded value comes out. A value
that is looked up is expanded by the same rules.

    $name  ${name}  $(name)             the value, empty when undefined
    $$                                  one dollar sign
    ${name?text}  ${name?{text}}        text when the value is not empty
    ${name:text}  ${name:{text}}        text when it is empty or undefined
    ${name?{text}:{text}}               one or the other
    ${{left} OP {right} ...}            the same with a comparison; OP is == != < <= >= >, which
                                        compares numbers as numbers, or one of these with `level`
                                        behind it, which compares compatibility levels

A syntax error, or more than 101 levels, is fatal after a warning that shows the place, both in
Postfix's words. No other exception leaves this module. Named functions, `${name{text}}`, came with
Postfix 3.11 and are a syntax error here as in the versions before.

One limit is ours: the operands of a comparison count as levels too, so that a value that refers to
itself there ends with the same message, where Postfix overflows its stack.

Rules: Postfix mac_parse.c, mac_expand.c, compat_level.c.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from tlsmgr.config.syntax import Warn, decode, encode
from tlsmgr.log import Fatal

LEVELS = 101
"""Most levels of nesting, the innermost text included."""

BLANKS = " \t\r\n"
BRACKETS = {"{": "}", "(": ")"}
PLAIN_NAME = re.compile(r"[A-Za-z0-9_]*")
NAME_AND_OPERATOR = re.compile(r"[ \t\r\n]*([A-Za-z0-9_]*)[ \t\r\n]*([?:]|\Z)")
OPERATOR = re.compile(r"[<>!=?+*/~&|%-]*")
SUFFIX = re.compile(r"[A-Za-z0-9]*")
DIGITS = re.compile(r"[0-9]+")
LEVEL_NUMBERS = re.compile(
    r"[ \t\n\v\f\r]*\+?([0-9]+)(?:\.[ \t\n\v\f\r]*\+?([0-9]+))?(?:\.[ \t\n\v\f\r]*\+?([0-9]+))?"
)
LEVEL_MAJOR_LIMIT = (2**63 - 1) >> 20
LEVEL_MINOR_LIMIT = 1023
LONG_LIMIT = 2**63 - 1

COMPARISONS: dict[str, Callable[[int], bool]] = {
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    ">=": lambda order: order >= 0,
    ">": lambda order: order > 0,
}
"""Operators, by the sign of left minus right; in the order of Postfix's message."""

KNOWN_OPERATORS = '"==" or "!="" or "<"" or "<="" or ">="" or ">"'
"""The operators in the message, with the quotes that Postfix puts there."""


class Malformed(Exception):
    """A syntax error; the message is the text of the warning."""


def expand(text: str, names: Mapping[str, str], warn: Warn) -> str:
    """Expand a value; `names` maps the names defined so far to their values, not expanded."""
    try:
        return expand_level(text, names, 0)
    except Malformed as error:
        warn(str(error))
    raise Fatal("dictionary mail_dict: macro processing error")


def expand_level(text: str, names: Mapping[str, str], level: int) -> str:
    """Expand a text that is `level` references deep."""
    result = []
    for piece, is_reference in pieces(text):
        if level >= LEVELS:
            raise Malformed(f'unreasonable macro call nesting: "{piece}"')
        result.append(expand_reference(piece, names, level + 1) if is_reference else piece)
    return "".join(result)


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Split a text into literal pieces (False) and the insides of references (True)."""
    literal = ""
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        literal += text[at:dollar]
        if text.startswith("$", dollar + 1):
            literal += "$"
            at = dollar + 2
            continue
        if literal:
            yield literal, False
            literal = ""
        reference, at = reference_at(text, dollar + 1)
        if not reference:
            raise Malformed(f'empty macro name: "{text}"')
        yield reference, True
    literal += text[at:]
    if literal:
        yield literal, False


def reference_at(text: str, start: int) -> tuple[str, int]:
    """The inside of the reference whose dollar sign is before `start`, and where it ends."""
    opening = text[start : start + 1]
    if opening in BRACKETS:
        end = closing(text, start + 1, opening)
        if end < 0:
            raise Malformed(f'truncated macro reference: "{text}"')
        return text[start + 1 : end], end + 1
    name = PLAIN_NAME.match(text, start)
    assert name is not None
    return name[0], name.end()


def closing(text: str, start: int, opening: str) -> int:
    """Where the bracket that was opened before `start` is closed; -1 when it is not."""
    level = 1
    for at in range(start, len(text)):
        if text[at] == opening:
            level += 1
        elif text[at] == BRACKETS[opening]:
            level -= 1
            if level == 0:
                return at
    return -1


def expand_reference(inside: str, names: Mapping[str, str], level: int) -> str:
    """Expand what is between the brackets of a reference."""
    if starts_with_brace(inside):
        value, rest = compare(inside.lstrip(BLANKS), names, level)
        if rest and rest[0] not in "?:":
            raise Malformed(f'"?" or ":" expected at: "...}}>>>{head(rest)}"')
        operator, rest = rest[:1], rest[1:]
    else:
        name, operator, rest = split_name(inside)
        value = names.get(name, "")
    if operator:
        return choose(bool(value), operator, rest, names, level)
    return expand_level(value, names, level)


def split_name(inside: str) -> tuple[str, str, str]:
    """Split `name`, `name?rest` or `name:rest` into name, operator and rest."""
    match = NAME_AND_OPERATOR.match(inside)
    if match is None:
        blanks = len(inside) - len(inside.lstrip(BLANKS))
        name = PLAIN_NAME.match(inside, blanks)
        assert name is not None
        before, after = inside[: name.end()], inside[name.end() :]
        raise Malformed(f'attribute name syntax error at: "...{before}>>>{head(after)}"')
    return match[1], match[2], inside[match.end() :]


def choose(condition: bool, operator: str, rest: str, names: Mapping[str, str], level: int) -> str:
    """Expand the text behind `?` if the condition holds, else the one behind `:`."""
    result = ""
    if operator == "?":
        text, rest = operand(rest)
        if condition:
            result = expand_level(text, names, level)
        if not rest:
            return result
        if rest[0] != ":":
            raise Malformed(f'":" expected at: "...{text}}}>>>{head(rest)}"')
        rest = rest[1:]
    text, rest = operand(rest)
    if not condition:
        result = expand_level(text, names, level)
    if rest:
        raise Malformed(f'unexpected input at: "...{text}}}>>>{head(rest)}"')
    return result


def operand(rest: str) -> tuple[str, str]:
    """A text in braces and what follows it, or all of the rest as it is."""
    return payload(rest.lstrip(BLANKS)) if starts_with_brace(rest) else (rest, "")


def payload(text: str) -> tuple[str, str]:
    """What is in the braces that open the text, and what follows them without leading blanks."""
    end = closing(text, 1, "{")
    if end < 0:
        raise Malformed(f'unbalanced {{}} in attribute expression: "{text}"')
    return text[1:end], text[end + 1 :].lstrip(BLANKS)


def compare(text: str, names: Mapping[str, str], level: int) -> tuple[str, str]:
    """Evaluate `{left} OP {right}`: `true` or nothing, and what follows."""
    left, rest = payload(text)
    match = OPERATOR.match(rest)
    operator = match[0] if match else ""
    if operator not in COMPARISONS:
        raise Malformed(f'{KNOWN_OPERATORS} expected at: "...{left}}}>>>{head(rest)}"')
    match = SUFFIX.match(rest, len(operator))
    suffix = match[0] if match else ""
    if suffix not in ORDERS:
        raise Malformed(f'bad operator suffix at: "...{operator}>>>{suffix}"')
    rest = rest[len(operator) + len(suffix) :]
    if not starts_with_brace(rest):
        place = f"...{{{left}}} {operator}>>>{head(rest)}"
        raise Malformed(f'"{{expression}}" expected at: "{place}"')
    right, rest = payload(rest.lstrip(BLANKS))
    values = [expand_level(side, names, level) for side in (left, right)]
    return "true" if COMPARISONS[operator](ORDERS[suffix](*values)) else "", rest


def order_of_values(left: str, right: str) -> int:
    """Compare as numbers when both sides are digits, else by bytes: below, at or above zero."""
    if DIGITS.fullmatch(left) and DIGITS.fullmatch(right):
        return number(left) - number(right)
    first, second = encode(left), encode(right)
    return (first > second) - (first < second)


def number(digits: str) -> int:
    """A number that fits a C long; another is fatal, in Postfix's words."""
    value = small_number(digits)
    if value > LONG_LIMIT:
        raise Fatal(f"mac_exp_eval: bad conversion: {digits}")
    return value


def small_number(digits: str) -> int:
    """The value of some digits, or of the first 20 that count: too much for any use here."""
    return int(digits.lstrip("0")[:20] or "0")


def order_of_levels(left: str, right: str) -> int:
    """Compare compatibility levels field by field: below, at or above zero."""
    levels = [compatibility_level(side) for side in (left, right)]
    return (levels[0] > levels[1]) - (levels[0] < levels[1])


ORDERS: dict[str, Callable[[str, str], int]] = {"": order_of_values, "level": order_of_levels}
"""Ways to compare, by the suffix of the operator."""


def compatibility_level(text: str) -> tuple[int, int, int]:
    """The fields of a compatibility level N, N.N or N.N.N; `Malformed` for anything else."""
    match = LEVEL_NUMBERS.fullmatch(text)
    if match:
        major, minor, patch = (small_number(field or "0") for field in match.groups())
        if major <= LEVEL_MAJOR_LIMIT and max(minor, patch) <= LEVEL_MINOR_LIMIT:
            return major, minor, patch
    raise Malformed(f'malformed compatibility level syntax: "{text}"')


def starts_with_brace(text: str) -> bool:
    """Whether the first character that is no blank is an opening brace."""
    return text.lstrip(BLANKS).startswith("{")


def head(text: str) -> str:
    """The first 20 bytes, for a message that shows a place."""
    return decode(encode(text)[:20])
