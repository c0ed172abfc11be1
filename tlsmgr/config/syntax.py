"""syntax - the lines of main.cf, and of tlsmgr.cf, which has the same syntax; words of master.cf.

Pure functions from bytes to assignments, and one that reads a file. The daemon calls them once,
before it forks; no lock is taken. No sequence of bytes raises anything but `Fatal`. Bytes that are
not UTF-8 become surrogate escapes (PEP 383), which stand for the same bytes in file names and
comparisons.

Fatal, with Postfix's texts: a line without `=` or without a name, a file that cannot be read. (In
tlsmgr.cf neither is fatal: `tlsmgr_cf` catches it.) A warning: a file that starts in the middle of
an assignment, a second value for the same name (the last one wins), a null byte (the rest of that
line is lost).

Rules: Postfix readlline.c, split_nameval.c, dict.c.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from tlsmgr.log import Fatal

BLANKS = b" \t\n\v\f\r"
"""isspace(3) in the C locale."""

_EACH_BLANK = frozenset(BLANKS[index : index + 1] for index in range(len(BLANKS)))

COOLING_PAUSE = 0.3
"""Seconds between two readings of a file that may still be being written."""

COOLING_READS = 10
"""Most readings of such a file."""

Warn = Callable[[str], None]
"""Takes the text of a warning or of an error: log.warning, log.error, or list.append in a test."""


class Assignment(NamedTuple):
    """One `name = value`, not expanded, and the number of the line where it starts."""

    name: str
    value: str
    line: int


class LogicalLine(NamedTuple):
    """A line with its continuation lines joined, and the numbers of its first and last line."""

    text: bytes
    first: int
    last: int


NOTHING: Mapping[str, str] = MappingProxyType({})


def load(path: str, warn: Warn, given: Mapping[str, str] = NOTHING) -> dict[str, str]:
    """Return the assignments of a file, name to value, not expanded, on top of those in `given`.

    FileNotFoundError passes, as only the caller knows whether a file may be missing. Any other
    failure to read is fatal.
    """
    return assign(parse(read(path), path, warn), path, warn, given)


def read(path: str) -> bytes:
    """Return the content of a file; read it again after a pause while it may be changing.

    Postfix reads a file that changed in the last two seconds again and again until it is older.
    Here two equal readings in a row are enough, so that a start right after an edit takes 0.3
    seconds and not two.
    """
    before = b""
    for reading in range(COOLING_READS):
        content, age = _read_once(path)
        if age > 1 or (reading and content == before):
            break
        before = content
        time.sleep(COOLING_PAUSE)
    return content


def _read_once(path: str) -> tuple[bytes, float]:
    """Return the content of a file, and its age in seconds: infinite when it is in the future."""
    started = time.time()
    try:
        with open(path, "rb") as file:
            content = file.read()
            changed = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Fatal(f"open {path}: {error.strerror}") from error
    if changed > time.time() + 1:
        return content, float("inf")
    return content, started - changed


def assign(
    assignments: Iterable[Assignment], path: str, warn: Warn, given: Mapping[str, str] = NOTHING
) -> dict[str, str]:
    """Collect assignments; the last one of a name wins, with a warning when the value differs."""
    values = dict(given)
    for name, value, line in assignments:
        old = values.get(name, value)
        if old != value:
            warn(f"{path}, line {line}: overriding earlier entry: {name}={old}")
        values[name] = value
    return values


def parse(content: bytes, path: str, warn: Warn) -> Iterator[Assignment]:
    """Yield the assignments in a file's content; `path` is for the messages only."""
    for line in logical_lines(content):
        if line.text[:1] in _EACH_BLANK:
            start, rest = line.text[:30], line.text[30:]
            text = decode(start) + ("..." if rest else "")
            warn(f'{path}: logical line must not start with whitespace: "{text}"')
            continue
        if b"\0" in line.text:
            warn(f"{path}, line {_span(line)}: text after null byte may be ignored")
        text = decode(line.text.partition(b"\0")[0])
        try:
            name, value = split_nameval(text)
        except ValueError as error:
            raise Fatal(f'{path}, line {line.first}: {error}: "{text}"') from None
        yield Assignment(name, value, line.first)


def _span(line: LogicalLine) -> str:
    """Return the numbers of a logical line as a message shows them: `3`, or `3-5`."""
    return f"{line.first}" if line.first == line.last else f"{line.first}-{line.last}"


def logical_lines(content: bytes) -> Iterator[LogicalLine]:
    """Join continuation lines: those that start with a blank continue the one before.

    Empty lines, blank lines and comments are skipped, between continuation lines too. The newline
    is dropped, the leading blanks of a continuation line stay.
    """
    pieces: list[bytes] = []
    first = last = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        stripped = line.strip(BLANKS)
        if not stripped or stripped.startswith(b"#"):
            continue
        if pieces and line[:1] not in _EACH_BLANK:
            yield LogicalLine(b"".join(pieces), first, last)
            pieces = []
        if not pieces:
            first = number
        pieces.append(line)
        last = number
    if pieces:
        yield LogicalLine(b"".join(pieces), first, last)


def split_nameval(text: str) -> tuple[str, str]:
    """Return name and value of `name = value`, without blanks at the ends of either.

    Raise ValueError, with Postfix's text for what is missing.
    """
    blanks = BLANKS.decode()
    left, equals, value = text.partition("=")
    name = left.strip(blanks)
    if not name:
        raise ValueError("missing attribute name")
    if not equals or any(char in blanks for char in name):
        raise ValueError("missing '=' after attribute name")
    return name, value.strip(blanks)


def split_arguments(text: str) -> list[str]:
    """Return the words of a line of master.cf, as master(8) passes them on (master_ent.c).

    They end at a blank; ``{ a b }`` is one word, without the braces and the blanks around it.
    """
    words: list[str] = []
    depth, word = 0, ""
    for char in f"{text} ":
        depth += (char == "{") - (char == "}")
        if depth == 0 and char.isspace():
            words += [word] if word else []
            word = ""
        else:
            word += char
    return [w[1:-1].strip() if w.startswith("{") and w.endswith("}") else w for w in words]


def option_values(arguments: Iterable[str]) -> Iterator[str]:
    """Yield the value of each -o option among the arguments of a program."""
    rest = iter(arguments)
    for word in rest:
        if word.startswith("-o"):
            yield word[2:] or next(rest, "")


def decode(content: bytes) -> str:
    """Return the bytes of a file as text; bytes that are not UTF-8 become surrogate escapes."""
    return content.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Return the bytes that `decode` made text of."""
    return text.encode("utf-8", "surrogateescape")
