"""tlsmgr_cf - the parameters of our own: optional, so that no mistake in them stops the mail.

They are set in tlsmgr.cf, which may be missing, and by -o options, which win. The daemon reads
them once, before it forks. A mistake is one log line, and the default holds; nothing is fatal:

    an error    a file that cannot be read, or a line that is no assignment: the file is ignored
    an error    a bad value, with the file and the line, or the option
    a warning   a name that is not ours, with the nearest one that is
    a warning   a file that users other than root and its owner can change

`warn_of_unknown` looks at the names in -o options that are not ours: Postfix accepts any name
there, and a misspelt one would otherwise go unnoticed.
"""

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from tlsmgr.config import syntax
from tlsmgr.config.expand import Malformed, try_expand
from tlsmgr.config.parameters import OURS, PARAMETERS
from tlsmgr.config.postfix_names import is_postfix_name
from tlsmgr.config.syntax import Warn
from tlsmgr.config.values import Kind, Parameter, Value, convert, size_text
from tlsmgr.log import Fatal

OUR_NAMES = frozenset(parameter.name for parameter in OURS)

_NAMES = frozenset(parameter.name for parameter in PARAMETERS)

OPTION = "option -o"
"""The place of a setting on the command line."""

_TIME = re.compile(r"[0-9]+[smhdw]?")
"""Stricter than Postfix, for which `wrong` is a number of weeks, namely zero."""

_REFERENCE = re.compile(r"\$[({]?[ \t\r\n]*([A-Za-z0-9_]+)")

_BAD = {
    Kind.NUMBER: "bad number",
    Kind.SIZE: "bad size",
    Kind.TIME: "bad time",
    Kind.SHORT_TIME: "bad time",
    Kind.FLAG: "neither yes nor no:",
    Kind.PATH: "not an absolute path:",
}

_IGNORED = "ignoring this file and using the defaults"

_SHOW: Mapping[Kind, Callable[[int], str]] = {
    Kind.SIZE: size_text,
    Kind.SHORT_TIME: "{}ms".format,
}
"""How a bound is written."""


class Setting(NamedTuple):
    """A value as it is written, not expanded, and the place where it is, for log lines."""

    value: str
    place: str


def load(path: str, warn: Warn, error: Warn) -> dict[str, Setting]:
    """Return the settings in tlsmgr.cf that are ours."""
    try:
        _check_permissions(path, warn)
        assignments = list(syntax.parse(syntax.read(path), path, warn))
    except FileNotFoundError:
        return {}
    except OSError as problem:
        error(f"open {path}: {problem.strerror}; {_IGNORED}")
        return {}
    except Fatal as problem:
        error(f"{problem.text}; {_IGNORED}")
        return {}
    syntax.assign(assignments, path, warn)  # for its warnings
    settings = {name: Setting(value, f"{path}, line {line}") for name, value, line in assignments}
    for name in [name for name in settings if name not in OUR_NAMES]:
        _warn_of_name(name, settings.pop(name).place, warn)
    return settings


def _check_permissions(path: str, warn: Warn) -> None:
    status = os.stat(path)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        warn(f"{path}: writable by users other than its owner (mode {status.st_mode & 0o7777:04o})")
    if status.st_uid not in (0, os.geteuid()):
        warn(f"{path}: owned by user ID {status.st_uid}, which is not root")


def _warn_of_name(name: str, place: str, warn: Warn) -> None:
    if is_postfix_name(name):
        warn(f"{place}: {name} has no effect here: this parameter belongs in main.cf")
    else:
        warn(f"{place}: {_unknown(name, OUR_NAMES)}")


def _unknown(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), 1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f'unknown parameter "{name}" has no effect{hint}'


def warn_of_unknown(options: Iterable[str], values: Iterable[str], warn: Warn) -> None:
    """Warn of names in -o options that mean nothing to Postfix or to us.

    `options` are the names. A name that one of `values` refers to, as `$name`, is in order.
    """
    unknown = [name for name in options if name not in OUR_NAMES and not is_postfix_name(name)]
    if not unknown:
        return
    used = {name for value in values for name in _REFERENCE.findall(value)}
    for name in unknown:
        if name not in used:
            warn(f"{OPTION}: {_unknown(name, _NAMES)}")


def evaluate(
    row: Parameter, setting: Setting | None, names: Mapping[str, str], error: Warn
) -> Value:
    """Return the value of one of our parameters; a bad one is an error line and the default."""
    if setting is not None:
        try:
            return _convert(row, try_expand(setting.value, names))
        except (Malformed, ValueError, Fatal) as problem:
            default = row.default or "(empty)"
            error(f"{setting.place}: {row.name}: {problem}; using the default {default}")
    return convert(row.kind, row.name, row.default, None, None)


def _convert(row: Parameter, text: str) -> Value:
    """Return the value of a text, or raise ValueError with what is wrong with it."""
    try:
        value = convert(row.kind, row.name, text, None, None)
    except Fatal:
        raise ValueError(f'{_BAD[row.kind]} "{text}"') from None
    if row.kind is Kind.TIME and not _TIME.fullmatch(text):
        raise ValueError(f'{_BAD[row.kind]} "{text}"')
    if isinstance(value, str):
        return _choice(row, value) if row.choices else value
    show = _SHOW.get(row.kind, str)
    if row.minimum is not None and value < row.minimum:
        raise ValueError(f'"{text}" is below the minimum of {show(row.minimum)}')
    if row.maximum is not None and value > row.maximum:
        raise ValueError(f'"{text}" is above the maximum of {show(row.maximum)}')
    return value


def _choice(row: Parameter, text: str) -> str:
    """Return the one of the choices that the text is, in any case."""
    if text.lower() not in row.choices:
        raise ValueError(f'not one of {", ".join(row.choices)}: "{text}"')
    return text.lower()
