"""signals - the parent's signals: queued, and handled only in its main loop; and its watchdog.

The handlers do nothing; Python writes the number of each signal into a pipe, which wakes the loop.

A child inherits the parent's handlers and pipe. ``block`` keeps a signal that is meant for the
child from going into the parent's pipe until ``reset_in_child`` has run.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator

from tlsmgr import log

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_QUEUED_SIGNALS = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD)
_IGNORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)


@contextlib.contextmanager
def queue() -> Iterator[int]:
    """Queue signals in a pipe; yield the end to read with ``drain``.

    Those that a start has blocked come now.
    """
    reader = wakeup_pipe()
    for number in _QUEUED_SIGNALS:
        signal.signal(number, _queued)
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _QUEUED_SIGNALS)
    yield reader
    signal.set_wakeup_fd(-1)


def wakeup_pipe() -> int:
    """Return the end of a pipe that each signal with a handler makes readable.

    So a signal ends a wait for events, which Python would resume by itself.
    """
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


class Watchdog:
    """Ends this process when it makes no progress for ``timeout`` seconds (Postfix watchdog.c).

    In three steps, so that one which was suspended for that long takes one step and goes on. It
    works while this process can run its handler: Python code, and calls that a signal interrupts.
    """

    STEPS = 3

    def __init__(self, timeout: float) -> None:
        self._interval = timeout / self.STEPS
        self._steps = 0
        signal.signal(signal.SIGALRM, self._count)

    def restart(self) -> None:
        """Note progress."""
        self._steps = 0
        signal.setitimer(signal.ITIMER_REAL, self._interval, self._interval)

    def stop(self) -> None:
        """End nothing any more."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _count(self, *_: object) -> None:
        self._steps += 1
        if self._steps >= self.STEPS:
            log.fatal("watchdog timeout")
            os._exit(1)


def drain(descriptor: int) -> bytes:
    """Return all that is in a non-blocking pipe: of the queue, the numbers of the signals."""
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def block() -> Iterable[int]:
    """Block the queued signals before a fork; return the mask for ``restore``."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, _QUEUED_SIGNALS)


def restore(mask: Iterable[int]) -> None:
    """Restore the signal mask after the fork."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reset_in_child() -> None:
    """Reset handlers in a child: SIGTERM ends it; SIGINT and SIGHUP are the parent's business."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _QUEUED_SIGNALS)


def _queued(*_: object) -> None:
    """The handler of the queued signals; the pipe has the number."""
