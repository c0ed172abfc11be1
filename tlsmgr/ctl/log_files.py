"""log_files - read log files in blocks of lines: plain, compressed by gzip, standard input

A file that cannot be read to its end yields all lines up to there, and then a Problem: the caller
reports it and goes on with the next file. The type of a file is known by its first bytes, not by
its name. A line has no newline at its end. Of a line longer than LONGEST only the beginning is a
line; the rest cannot be mistaken for one.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TextIO

STANDARD_INPUT = "-"
BLOCK = 1 << 20  # bytes
LONGEST = 1 << 16  # bytes of a line
PERIOD = 0.1  # seconds from one view of the progress to the next
WIDTH = 40  # characters of the bar
DAMAGE = (OSError, EOFError, zlib.error)
_GZIP = b"\x1f\x8b"
_OTHERS = {  # the first bytes of other compressed files, and the program that reads them
    b"BZh": "bzcat",
    b"\xfd7zXZ": "xzcat",
    b"\x28\xb5\x2f\xfd": "zstdcat",
}


class Problem(Exception):
    """A file cannot be read, or not to its end; the text says which file and why."""


class LogFile:
    """One file of a log, or standard input. Problem: there is no such file."""

    def __init__(self, name: str) -> None:
        self.name = "standard input" if name == STANDARD_INPUT else name
        self.lines = 0  # read so far
        self._path: str | int = 0 if name == STANDARD_INPUT else name
        self._file: io.BufferedReader | None = None
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise self._problem("cannot be read", error) from None
        regular = stat.S_ISREG(status.st_mode)
        self.size = status.st_size if regular else 0
        self.written = status.st_mtime if regular else time.time()

    @property
    def newest(self) -> datetime:
        """The local time that no line is later than."""
        return datetime.fromtimestamp(min(self.written, time.time())).astimezone()

    def position(self) -> int:
        """Return how many of the file's bytes are read."""
        if self._file is not None and self.size:
            return self._file.tell()
        return 0

    def blocks(self) -> Iterator[list[bytes]]:
        """Yield the lines, many at a time. Problem: the file cannot be read to its end."""
        try:
            with open(self._path, "rb", closefd=self._path != 0) as self._file:
                for lines in _blocks(self._reader(self._file)):
                    self.lines += len(lines)
                    yield lines
        except DAMAGE as error:
            what = f"only {self.lines} lines can be read" if self.lines else "cannot be read"
            raise self._problem(what, error) from None

    def _reader(self, file: io.BufferedReader) -> Callable[[int], bytes]:
        head = file.peek(max(map(len, _OTHERS)))
        if head.startswith(_GZIP):
            # read1() returns all bytes before the place of an error; read() would lose some.
            return gzip.GzipFile(fileobj=file).read1
        for magic, program in _OTHERS.items():
            if head.startswith(magic):
                how = f"`{program} {self.name} | tlsmgrctl report -`"
                raise Problem(f"{self.name}: this compression is not supported; use {how}")
        if b"\0" in head:
            raise Problem(f"{self.name}: binary data, not a log")
        return file.read1

    def _problem(self, what: str, error: Exception) -> Problem:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Problem(f"{self.name}: {what}: {reason}")


def _blocks(read: Callable[[int], bytes]) -> Iterator[list[bytes]]:
    """Yield the lines up to the end or to an error, which passes through."""
    rest = b""
    damage: Exception | None = None
    while True:
        try:
            if not (block := read(BLOCK)):
                break
        except DAMAGE as error:
            damage = error
            break
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if len(rest) > LONGEST:
            lines.append(rest[:LONGEST])
            rest = b"?"  # no line of a log begins like this
        yield lines
    if rest:
        yield [rest]
    if damage is not None:
        raise damage


class Progress:
    """A bar on a terminal that shows how much was read; usable in `with`, which clears it."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total = total
        self._stream = stream
        self._shown = stream.isatty()
        self._next = 0.0  # the earliest time to show it again

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show("")

    def update(self, done: int, now: float) -> None:
        """`done` bytes are read."""
        if self._shown and now >= self._next:
            self._next = now + PERIOD
            if self._total:
                share = min(done / self._total, 1.0)
                bar = "#" * int(WIDTH * share)
                self._show(f"[{bar:.<{WIDTH}}] {share:4.0%}")
            else:  # of standard input the size is not known
                self._show(f"{done >> 20} MiB")

    def _show(self, text: str) -> None:
        if self._shown:
            self._stream.write(f"\r{text}\x1b[K")
            self._stream.flush()
