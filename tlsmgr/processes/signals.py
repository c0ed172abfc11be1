"""signals - how the parent hears of signals: as bytes in a pipe, in its own time.

Handlers do nothing; Python writes the number of each signal that comes into a pipe, which wakes the
parent's loop. So nothing is ever interrupted, and no code runs at a moment that nobody chose.

A child starts with the ways of the parent. ``hold`` keeps a signal that is meant for it from ending
up in the queue of the parent until ``forget`` has given it its own ways.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_QUEUED_SIGNALS = (*STOP_SIGNALS, signal.SIGCHLD)
_IGNORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)


@contextlib.contextmanager
def queue() -> Iterator[int]:
    """Queue signals in a pipe; gives the end to read with ``drain``."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _QUEUED_SIGNALS:
        signal.signal(number, _queued)
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    yield reader
    signal.set_wakeup_fd(-1)


def drain(descriptor: int) -> bytes:
    """All that is in a non-blocking pipe: of the queue, the numbers of the signals that came."""
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def hold() -> Iterable[int]:
    """Before a fork: block what is queued; returns what ``let_go`` needs."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, _QUEUED_SIGNALS)


def let_go(held: Iterable[int]) -> None:
    """After the fork: unblock it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, held)


def forget(held: Iterable[int]) -> None:
    """In a child: only SIGTERM means something; master's and a terminal's go to the parent."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    let_go(held)


def _queued(*_: object) -> None:
    """The handler of signals that are taken from the pipe."""
