"""Log lines in Postfix's wording.

For every process of the program: `info`, `warning`, `error`, `fatal` and `panic` write one line
each to the one destination of this process. That destination is the only piece of process-wide
state here; it starts as standard error and is replaced by `use`, once before the options are read
and once when the configuration is known. Forked workers inherit it.

Promises: no call waits for long, and none raises because of where the line goes; a destination
that takes nothing more drops lines, counts them, and says how many when it works again. Text comes
out printable (`?` for other bytes, newlines too; UTF-8 is kept once `use` says so) and is cut at
2000 bytes. The process id is taken at each line. Nothing is imported and no file is read while a
line is written, so that all of it works in a chroot jail.

Nothing here ends the process. Code that cannot go on raises `Fatal`; the program's outermost
function turns that into one `fatal:` line and exit status 1. Postfix's rule that the 13th error
ends the process is not followed: a server that answers most requests is better than none.

Texts must hold no session, key or seed, and at most 100 bytes of a peer's rubbish.
"""

import os
import select
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol

TEXT_LIMIT = 2000
"""Longest text of one line in bytes, as in Postfix's msg_output.c."""

FRAME_LIMIT = 20
"""Most frames of a traceback that are logged: the innermost ones."""


class Fatal(Exception):
    """The program cannot go on, and `text` is the one line that tells the operator why."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Severity(NamedTuple):
    """How grave a line is: the word before the text, and the level of syslog(3)."""

    prefix: str
    level: int


INFO = Severity("", 6)
WARNING = Severity("warning: ", 4)
ERROR = Severity("error: ", 3)
FATAL = Severity("fatal: ", 2)
PANIC = Severity("panic: ", 2)


class Destination(Protocol):
    """Where lines go: standard error here, the sockets in `logsockets`."""

    def write(self, severity: Severity, tag: str, text: bytes) -> None:
        """Take one printable line. Does not wait for long; what cannot be taken is dropped."""

    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that a worker must keep to go on logging."""


class Stderr:
    """Standard error, for a program that a person started: `tlsmgr[123]: warning: text`."""

    def write(self, severity: Severity, tag: str, text: bytes) -> None:
        """Write one line unless the reader of a full pipe is asleep."""
        name = tag.rpartition("/")[2]
        line = f"{name}[{os.getpid()}]: {severity.prefix}".encode() + text + b"\n"
        try:
            if writable(2):
                os.write(2, line)
        except OSError:
            pass  # nobody is left to be told

    def descriptors(self) -> tuple[int, ...]:
        """Standard error alone."""
        return (2,)


@dataclass(frozen=True)
class Route:
    """What `use` sets: the destination and how lines look there."""

    destination: Destination
    tag: str
    keep_utf8: bool
    also_stderr: bool


_route = Route(Stderr(), "postfix/tlsmgr", keep_utf8=False, also_stderr=False)


def use(
    destination: Destination,
    tag: str = "postfix/tlsmgr",
    *,
    keep_utf8: bool = False,
    also_stderr: bool = False,
) -> Route:
    """Send all further lines of this process to `destination`.

    `tag` is SYSLOG_NAME/PROCNAME without the process id. `keep_utf8` leaves valid UTF-8 as it is
    (smtputf8_enable). `also_stderr` is the -V option: every line goes to standard error as well.
    Returns what was in force before, for `restore`.
    """
    tag = printable(tag, keep_utf8).decode()
    return restore(Route(destination, tag, keep_utf8, also_stderr))


def restore(route: Route) -> Route:
    """Put back what `use` returned; returns what was in force before."""
    global _route
    before, _route = _route, route
    return before


def descriptors() -> tuple[int, ...]:
    """The descriptors that a forked worker must keep open to go on logging."""
    extra = (2,) if _route.also_stderr else ()
    return tuple(sorted({*_route.destination.descriptors(), *extra}))


def info(text: str) -> None:
    """Log what an operator wants to know while all is well."""
    write(INFO, text)


def warning(text: str) -> None:
    """Log what an operator should look at; the program works on."""
    write(WARNING, text)


def error(text: str) -> None:
    """Log that something asked for is not available; the program works on without it."""
    write(ERROR, text)


def fatal(text: str) -> None:
    """Log why the program ends. It does not end here: see `Fatal`."""
    write(FATAL, text)


def panic(text: str) -> None:
    """Log a defect of the program itself. It does not end here."""
    write(PANIC, text)


def traceback(bug: BaseException) -> None:
    """Log an exception that is a defect of the program: its type, its message, its frames.

    Needs no source file, so that it works in a jail.
    """
    panic(f"{type(bug).__name__}: {str(bug)[:100]}")
    for line in frames(bug.__traceback__)[-FRAME_LIMIT:]:
        panic(f"  {line}")


def frames(trace: TracebackType | None) -> list[str]:
    """The calls of a traceback, outermost first: `FILE:LINE in FUNCTION`."""
    lines = []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return lines


def write(severity: Severity, text: str) -> None:
    """Log one line of the given severity."""
    route = _route
    line = printable(text, route.keep_utf8)
    route.destination.write(severity, route.tag, line)
    if route.also_stderr and not isinstance(route.destination, Stderr):
        Stderr().write(severity, route.tag, line)


def printable(text: str, keep_utf8: bool) -> bytes:
    """Make text fit for a log line: printable, in UTF-8 or ASCII, of at most `TEXT_LIMIT` bytes.

    Bytes that were no UTF-8 may be in the text as surrogate escapes (PEP 383); each becomes `?`.
    Without `keep_utf8` each byte of a character outside ASCII becomes `?` (Postfix printable.c).
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(_printable_character(char, keep_utf8) for char in text[:TEXT_LIMIT])
    return text.encode()[:TEXT_LIMIT].decode(errors="ignore").encode()


def _printable_character(char: str, keep_utf8: bool) -> str:
    if char.isprintable() and (keep_utf8 or char.isascii()):
        return char
    if "\ud800" <= char <= "\udfff":
        return "?"
    return "?" * len(char.encode())


def writable(descriptor: int) -> bool:
    """Whether a line can be written to the descriptor now, without waiting."""
    watch = select.poll()
    watch.register(descriptor, select.POLLOUT)
    return bool(watch.poll(0))


class Limit:
    """Keeps a condition that lasts from filling the log: one line a key an interval.

    Keys are short words chosen by the program. `interval` is in seconds, `now` in seconds of any
    clock that does not go back, such as time.monotonic().
    """

    KEYS = 1000

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last: dict[str, float] = {}

    def allows(self, key: str, now: float) -> bool:
        """Whether a line for this key is due; if so, the interval starts again."""
        last = self._last.get(key)
        if last is not None and now - last < self._interval:
            return False
        if len(self._last) >= self.KEYS:
            self._last.clear()
        self._last[key] = now
        return True

    def warning(self, key: str, text: str, now: float) -> None:
        """Log a warning if one is due for this key."""
        if self.allows(key, now):
            warning(text)
