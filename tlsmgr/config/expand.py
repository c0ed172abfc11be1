"""expand - $-expansion of parameter values, as Postfix does it.

Pure functions: a value and the names known so far go in, the expanded value comes out. A value
that is looked up is expanded by the same rules.

    $name  ${name}  $(name)             the value; empty when the name is undefined
    $$                                  one dollar sign
    ${name?text}  ${name?{text}}        text when the value is not empty
    ${name:text}  ${name:{text}}        text when it is empty or undefined
    ${name?{text}:{text}}               one or the other
    ${{left} OP {right} ...}            the same with a comparison. OP is == != < <= >= >; two
                                        numbers are compared as numbers. With `level` behind it,
                                        OP compares compatibility levels

In main.cf a syntax error, or more than 101 levels, is fatal after a warning that shows the place,
both with Postfix's texts. Named functions, `${name{text}}`, came with Postfix 3.11; here they are
a syntax error, as in the versions before.

One limit is ours: the operands of a comparison count as levels too, so that a value that refers to
itself there ends with the same message, where Postfix overflows its stack.

Rules: Postfix mac_parse.c, mac_expand.c, compat_level.c.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from tlsmgr.config.syntax import Warn, decode, encode
from tlsmgr.log import Fatal

_LEVELS = 101
"""Most levels of nesting, the innermost text included."""

_BLANKS = " \t\r\n"
_BRACKETS = {"{": "}", "(": ")"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]*")
_NAME_AND_OPERATOR = re.compile(r"[ \t\r\n]*([A-Za-z0-9_]*)[ \t\r\n]*([?:]|\Z)")
_OPERATOR = re.compile(r"[<>!=?+*/~&|%-]*")
_SUFFIX = re.compile(r"[A-Za-z0-9]*")
_DIGITS = re.compile(r"[0-9]+")
_LEVEL_NUMBERS = re.compile(
    r"[ \t\n\v\f\r]*\+?([0-9]+)(?:\.[ \t\n\v\f\r]*\+?([0-9]+))?(?:\.[ \t\n\v\f\r]*\+?([0-9]+))?"
)
_LEVEL_MAJOR_LIMIT = (2**63 - 1) >> 20
_LEVEL_MINOR_LIMIT = 1023
_LONG_LIMIT = 2**63 - 1

_COMPARISONS: dict[str, Callable[[int], bool]] = {
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    ">=": lambda order: order >= 0,
    ">": lambda order: order > 0,
}
"""Operators, by the sign of left minus right, in the order of Postfix's message."""

_KNOWN_OPERATORS = '"==" or "!="" or "<"" or "<="" or ">="" or ">"'
"""The operators in the message, with the quotes that Postfix puts there."""


class Malformed(Exception):
    """A syntax error; the message is the text of the warning."""


def expand(text: str, names: Mapping[str, str], warn: Warn) -> str:
    """Return a value of main.cf expanded; a syntax error is a warning and then Fatal.

    `names` maps the names defined so far to their values, not expanded.
    """
    try:
        return try_expand(text, names)
    except Malformed as error:
        warn(str(error))
    raise Fatal("dictionary mail_dict: macro processing error")


def try_expand(text: str, names: Mapping[str, str]) -> str:
    """Return a value expanded, or raise Malformed; Fatal for a number that is too large."""
    return _expand_level(text, names, 0)


def _expand_level(text: str, names: Mapping[str, str], level: int) -> str:
    """Return the expansion of a text that is `level` references deep."""
    result = []
    for piece, is_reference in _pieces(text):
        if level >= _LEVELS:
            raise Malformed(f'unreasonable macro call nesting: "{piece}"')
        result.append(_expand_reference(piece, names, level + 1) if is_reference else piece)
    return "".join(result)


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the literal pieces of a text (False) and the insides of its references (True)."""
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
        reference, at = _reference_at(text, dollar + 1)
        if not reference:
            raise Malformed(f'empty macro name: "{text}"')
        yield reference, True
    literal += text[at:]
    if literal:
        yield literal, False


def _reference_at(text: str, start: int) -> tuple[str, int]:
    """Return the inside of the reference whose dollar sign is before `start`, and its end."""
    opening = text[start : start + 1]
    if opening in _BRACKETS:
        end = _closing(text, start + 1, opening)
        if end < 0:
            raise Malformed(f'truncated macro reference: "{text}"')
        return text[start + 1 : end], end + 1
    name = _PLAIN_NAME.match(text, start)
    assert name is not None
    return name[0], name.end()


def _closing(text: str, start: int, opening: str) -> int:
    """Return where the bracket that was opened before `start` is closed; -1 when it is not."""
    level = 1
    for at in range(start, len(text)):
        if text[at] == opening:
            level += 1
        elif text[at] == _BRACKETS[opening]:
            level -= 1
            if level == 0:
                return at
    return -1


def _expand_reference(inside: str, names: Mapping[str, str], level: int) -> str:
    """Return the expansion of a reference, given the text between its brackets."""
    if _starts_with_brace(inside):
        value, rest = _compare(inside.lstrip(_BLANKS), names, level)
        if rest and rest[0] not in "?:":
            raise Malformed(f'"?" or ":" expected at: "...}}>>>{_head(rest)}"')
        operator, rest = rest[:1], rest[1:]
    else:
        name, operator, rest = _split_name(inside)
        value = names.get(name, "")
    if operator:
        return _choose(bool(value), operator, rest, names, level)
    return _expand_level(value, names, level)


def _split_name(inside: str) -> tuple[str, str, str]:
    """Return the name, operator and rest of `name`, `name?rest` or `name:rest`."""
    match = _NAME_AND_OPERATOR.match(inside)
    if match is None:
        blanks = len(inside) - len(inside.lstrip(_BLANKS))
        name = _PLAIN_NAME.match(inside, blanks)
        assert name is not None
        before, after = inside[: name.end()], inside[name.end() :]
        raise Malformed(f'attribute name syntax error at: "...{before}>>>{_head(after)}"')
    return match[1], match[2], inside[match.end() :]


def _choose(condition: bool, operator: str, rest: str, names: Mapping[str, str], level: int) -> str:
    """Return the text behind `?` if the condition holds, else the one behind `:`, expanded."""
    result = ""
    if operator == "?":
        text, rest = _operand(rest)
        if condition:
            result = _expand_level(text, names, level)
        if not rest:
            return result
        if rest[0] != ":":
            raise Malformed(f'":" expected at: "...{text}}}>>>{_head(rest)}"')
        rest = rest[1:]
    text, rest = _operand(rest)
    if not condition:
        result = _expand_level(text, names, level)
    if rest:
        raise Malformed(f'unexpected input at: "...{text}}}>>>{_head(rest)}"')
    return result


def _operand(rest: str) -> tuple[str, str]:
    """Return a text in braces and the rest behind it; without braces all is the text."""
    return _payload(rest.lstrip(_BLANKS)) if _starts_with_brace(rest) else (rest, "")


def _payload(text: str) -> tuple[str, str]:
    """Return the text between the opening braces, and the rest without leading blanks."""
    end = _closing(text, 1, "{")
    if end < 0:
        raise Malformed(f'unbalanced {{}} in attribute expression: "{text}"')
    return text[1:end], text[end + 1 :].lstrip(_BLANKS)


def _compare(text: str, names: Mapping[str, str], level: int) -> tuple[str, str]:
    """Return the result of `{left} OP {right}`, `true` or empty, and the rest behind it."""
    left, rest = _payload(text)
    match = _OPERATOR.match(rest)
    operator = match[0] if match else ""
    if operator not in _COMPARISONS:
        raise Malformed(f'{_KNOWN_OPERATORS} expected at: "...{left}}}>>>{_head(rest)}"')
    match = _SUFFIX.match(rest, len(operator))
    suffix = match[0] if match else ""
    if suffix not in _ORDERS:
        raise Malformed(f'bad operator suffix at: "...{operator}>>>{suffix}"')
    rest = rest[len(operator) + len(suffix) :]
    if not _starts_with_brace(rest):
        place = f"...{{{left}}} {operator}>>>{_head(rest)}"
        raise Malformed(f'"{{expression}}" expected at: "{place}"')
    right, rest = _payload(rest.lstrip(_BLANKS))
    values = [_expand_level(side, names, level) for side in (left, right)]
    return "true" if _COMPARISONS[operator](_ORDERS[suffix](*values)) else "", rest


def _order_of_values(left: str, right: str) -> int:
    """Compare as numbers when both sides are digits, else by bytes; return <0, 0 or >0."""
    if _DIGITS.fullmatch(left) and _DIGITS.fullmatch(right):
        return _number(left) - _number(right)
    first, second = encode(left), encode(right)
    return (first > second) - (first < second)


def _number(digits: str) -> int:
    """Return a number that fits a C long; another is fatal, with Postfix's text."""
    value = _small_number(digits)
    if value > _LONG_LIMIT:
        raise Fatal(f"mac_exp_eval: bad conversion: {digits}")
    return value


def _small_number(digits: str) -> int:
    """Return the value of the digits; of more than 20 only the first 20 count."""
    return int(digits.lstrip("0")[:20] or "0")


def _order_of_levels(left: str, right: str) -> int:
    """Compare compatibility levels field by field; return <0, 0 or >0."""
    levels = [compatibility_level(side) for side in (left, right)]
    return (levels[0] > levels[1]) - (levels[0] < levels[1])


_ORDERS: dict[str, Callable[[str, str], int]] = {"": _order_of_values, "level": _order_of_levels}
"""Ways to compare, by the suffix of the operator."""


def compatibility_level(text: str) -> tuple[int, int, int]:
    """Return the fields of a compatibility level N, N.N or N.N.N, or raise Malformed."""
    match = _LEVEL_NUMBERS.fullmatch(text)
    if match:
        major, minor, patch = (_small_number(field or "0") for field in match.groups())
        if major <= _LEVEL_MAJOR_LIMIT and max(minor, patch) <= _LEVEL_MINOR_LIMIT:
            return major, minor, patch
    raise Malformed(f'malformed compatibility level syntax: "{text}"')


def _starts_with_brace(text: str) -> bool:
    """Return whether the first character other than a blank is an opening brace."""
    return text.lstrip(_BLANKS).startswith("{")


def _head(text: str) -> str:
    """Return the first 20 bytes, for a message that shows a place."""
    return decode(encode(text)[:20])
