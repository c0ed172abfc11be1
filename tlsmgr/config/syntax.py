"""The lines of main.cf, and of tlsmgr.cf, which has the same syntax.

Pure functions from bytes to assignments, and one that reads a file. The daemon calls them once,
before it forks; no lock is taken.

Promises: no sequence of bytes raises anything but `Fatal`. Bytes that are no UTF-8 come through
as surrogate escapes (PEP 383) and go back to the same bytes in file names and comparisons.

Fatal, with Postfix's words: a line without `=` or without a name, a file that cannot be read.
A warning: a file that starts in the middle of an assignment, a second value for the same name
(the last one wins), a null byte (the rest of that line is lost).

Rules: Postfix readlline.c, split_nameval.c, dict.c.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from tlsmgr.log import Fatal

BLANKS = b" \t\n\v\f\r"
"""isspace(3) in the C locale."""

COOLING_PAUSE = 0.3
"""Seconds between two readings of a file that somebody may still be writing."""

COOLING_READS = 10
"""Most readings of such a file."""

Warn = Callable[[str], None]
"""Takes the text of a warning: log.warning, or list.append in a test."""


class LogicalLine(NamedTuple):
    """A line with its continuation lines joined, and the numbers of its first and last line."""

    text: bytes
    first: int
    last: int


class Assignment(NamedTuple):
    """One `name = value`, not expanded, and the number of the line where it starts."""

    name: str
    value: str
    line: int


NOTHING: Mapping[str, str] = MappingProxyType({})


def load(path: str, warn: Warn, given: Mapping[str, str] = NOTHING) -> dict[str, str]:
    """Read a file of assignments: name to value, not expanded, on top of those in `given`.

    FileNotFoundError passes, as whether a file may be missing is the caller's affair; any other
    failure to read is fatal.
    """
    return assign(parse(read(path), path, warn), path, warn, given)


def read(path: str) -> bytes:
    """Read a whole file, again after a pause while it may be in the middle of a change.

    Postfix reads a file that changed in the last two seconds again and again until it is older.
    Here two readings in a row that agree are enough, so that a start right after an edit takes
    0.3 seconds and not two.
    """
    before = b""
    for reading in range(COOLING_READS):
        content, age = read_once(path)
        if age > 1 or (reading and content == before):
            break
        before = content
        time.sleep(COOLING_PAUSE)
    return content


def read_once(path: str) -> tuple[bytes, float]:
    """The content of a file, and the seconds since it last changed (infinite for the future)."""
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
    assignments: Iterator[Assignment], path: str, warn: Warn, given: Mapping[str, str] = NOTHING
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
    """Find the assignments in a file's content; `path` is for the messages only."""
    for line in logical_lines(content):
        if line.text[:1] in BLANKS_EACH:
            start, rest = line.text[:30], line.text[30:]
            text = decode(start) + ("..." if rest else "")
            warn(f'{path}: logical line must not start with whitespace: "{text}"')
            continue
        if b"\0" in line.text:
            warn(f"{path}, line {span(line)}: text after null byte may be ignored")
        text = decode(line.text.partition(b"\0")[0])
        try:
            name, value = split_nameval(text)
        except ValueError as error:
            raise Fatal(f'{path}, line {line.first}: {error}: "{text}"') from None
        yield Assignment(name, value, line.first)


BLANKS_EACH = frozenset(BLANKS[index : index + 1] for index in range(len(BLANKS)))


def span(line: LogicalLine) -> str:
    """The numbers of a logical line as a message shows them: `3`, or `3-5`."""
    return f"{line.first}" if line.first == line.last else f"{line.first}-{line.last}"


def logical_lines(content: bytes) -> Iterator[LogicalLine]:
    """Join continuation lines: those that start with a blank continue the one before.

    Empty lines, blank lines and comments are skipped, between continuation lines too. The newline
    goes, the leading blanks of a continuation line stay.
    """
    pieces: list[bytes] = []
    first = last = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        stripped = line.strip(BLANKS)
        if not stripped or stripped.startswith(b"#"):
            continue
        if pieces and line[:1] not in BLANKS_EACH:
            yield LogicalLine(b"".join(pieces), first, last)
            pieces = []
        if not pieces:
            first = number
        pieces.append(line)
        last = number
    if pieces:
        yield LogicalLine(b"".join(pieces), first, last)


def split_nameval(text: str) -> tuple[str, str]:
    """Split `name = value`, without blanks at the ends of either.

    ValueError, with Postfix's words for what is missing.
    """
    blanks = BLANKS.decode()
    left, equals, value = text.partition("=")
    words = left.lstrip(blanks).rstrip(blanks)
    if not words:
        raise ValueError("missing attribute name")
    if not equals or any(char in blanks for char in words):
        raise ValueError("missing '=' after attribute name")
    return words, value.strip(blanks)


def decode(content: bytes) -> str:
    """Bytes of a file as text; what is no UTF-8 becomes surrogate escapes."""
    return content.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The bytes that `decode` made text of."""
    return text.encode("utf-8", "surrogateescape")
