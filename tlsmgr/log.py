"""log - log lines in the form of Postfix, and the limit for warnings that repeat.

Every process uses it: `info`, `warning`, `error`, `fatal` and `panic` write one line each to the
destination of this process. The destination is the only process-wide state here. It is standard
error at first; `use` replaces it before the options are read, and again when the configuration is
known. Forked workers inherit it.

No call raises an exception or blocks: a destination that takes no more lines drops them (see
`logsockets` for how long a line may wait there). Text is made printable (`?` for other bytes and
for newlines; UTF-8 is kept when `use` says so) and is cut at 2000 bytes. Nothing is imported and no
file is read while a line is written, so that logging works in a chroot jail.

Nothing here ends the process. Code that cannot continue raises `Fatal`; `main` turns that into one
`fatal:` line and exit status 1. Postfix ends a process at its 13th `error:` line. This program does
not: a server that answers most requests is better than none.

Texts must not contain a session, key or seed, and at most 100 bytes that a client sent.
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
    """The program cannot continue; `text` is the log line that says why."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Severity(NamedTuple):
    """The severity of a line: the prefix of its text, and its level in syslog(3)."""

    prefix: str
    level: int


INFO = Severity("", 6)
WARNING = Severity("warning: ", 4)
ERROR = Severity("error: ", 3)
FATAL = Severity("fatal: ", 2)
PANIC = Severity("panic: ", 2)


class Destination(Protocol):
    """A destination of lines: standard error here, the sockets in `logsockets`."""

    def write(self, severity: Severity, tag: str, text: bytes) -> None:
        """Take one printable line, or drop it."""

    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors that a worker must keep to continue logging."""


class Stderr:
    """Standard error, for a program that a person started: `tlsmgr[123]: warning: text`."""

    def write(self, severity: Severity, tag: str, text: bytes) -> None:
        """Write one line, or drop it when the pipe is full or closed."""
        name = tag.rpartition("/")[2]
        line = f"{name}[{os.getpid()}]: {severity.prefix}".encode() + text + b"\n"
        try:
            if writable(2):
                os.write(2, line)
        except OSError:
            pass  # closed: there is no place to report it

    def descriptors(self) -> tuple[int, ...]:
        """Return that of standard error."""
        return (2,)


@dataclass(frozen=True)
class Route:
    """The arguments of `use`: the destination and the form of its lines."""

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
    Return the previous route, for `restore`.
    """
    tag = printable(tag, keep_utf8).decode()
    return restore(Route(destination, tag, keep_utf8, also_stderr))


def restore(route: Route) -> Route:
    """Use a route that `use` returned; return the previous one."""
    global _route
    before, _route = _route, route
    return before


def descriptors() -> tuple[int, ...]:
    """Return the descriptors that a forked worker must keep open to continue logging."""
    extra = (2,) if _route.also_stderr else ()
    return tuple(sorted({*_route.destination.descriptors(), *extra}))


def info(text: str) -> None:
    """Log an event of normal operation."""
    write(INFO, text)


def warning(text: str) -> None:
    """Log a problem that an operator should look at; the program continues."""
    write(WARNING, text)


def error(text: str) -> None:
    """Log that something that was configured is not available; the program continues without."""
    write(ERROR, text)


def fatal(text: str) -> None:
    """Log why the program ends. It does not end here: see `Fatal`."""
    write(FATAL, text)


def panic(text: str) -> None:
    """Log a defect of the program itself. It does not end here."""
    write(PANIC, text)


def traceback(bug: BaseException) -> None:
    """Log an exception that is a defect of the program: its type, message and frames.

    It reads no source file, so that it works in a jail.
    """
    panic(f"{type(bug).__name__}: {str(bug)[:100]}")
    for line in _frames(bug.__traceback__)[-FRAME_LIMIT:]:
        panic(f"  {line}")


def _frames(trace: TracebackType | None) -> list[str]:
    """Return the calls of a traceback, outermost first: `FILE:LINE in FUNCTION`."""
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
    """Return the text as printable UTF-8 or ASCII of at most `TEXT_LIMIT` bytes.

    A surrogate escape (PEP 383), which stands for a byte that was not UTF-8, becomes `?`. Without
    `keep_utf8` each byte of a character outside ASCII becomes `?` (Postfix printable.c).
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
    """Return whether a line can be written to the descriptor now, without waiting."""
    watch = select.poll()
    watch.register(descriptor, select.POLLOUT)
    return bool(watch.poll(0))


@dataclass
class _Repeats:
    """The lines for one key: when the interval began, how many were logged in it, and how many
    were left out since the last line."""

    start: float
    logged: int = 0
    left_out: int = 0


class Limit:
    """Limits warnings that repeat: at most `burst` lines for each key in each interval.

    The others are counted, and the next line for that key ends with the count: "TEXT (17 more
    since the last such line)". A key names a kind of problem; the program chooses it, so that a
    client cannot add keys. `interval` is in seconds, and so is `now`, of any one clock.
    """

    KEYS = 1000

    def __init__(self, interval: float, burst: int = 1) -> None:
        self._interval = interval
        self._burst = burst
        self._repeats: dict[str, _Repeats] = {}

    def warning(self, key: str, text: str, now: float) -> None:
        """Log a warning if one is due for this key, otherwise count it."""
        left_out = self._admit(key, now)
        if left_out is not None:
            warning(f"{text} ({left_out} more since the last such line)" if left_out else text)

    def over(self, text: str) -> None:
        """Log `text` once if there was a warning since the last call."""
        if self._repeats:
            self._repeats.clear()
            info(text)

    def _admit(self, key: str, now: float) -> int | None:
        """Return how many lines were left out since the last one; None if no line is due."""
        if key not in self._repeats and len(self._repeats) >= self.KEYS:
            self._repeats.clear()
        repeats = self._repeats.setdefault(key, _Repeats(now))
        if not 0 <= now - repeats.start < self._interval:
            repeats.start, repeats.logged = now, 0
        if repeats.logged >= self._burst:
            repeats.left_out += 1
            return None
        repeats.logged += 1
        left_out, repeats.left_out = repeats.left_out, 0
        return left_out
