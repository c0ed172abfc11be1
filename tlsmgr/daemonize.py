"""background - leave the terminal: what ``--daemon`` does, and the answer to "has it started?".

The process forks; the child leaves the session and the terminal's streams. What it says on standard
error goes through a pipe to the first process, which passes it on, waits, and then exits: status 0
when the workers serve, so that a script may rely on it, else 1. So nobody who reads the output of
the first process waits for the end of the daemon, nor do the workers, which are forked meanwhile,
hold anything of the terminal's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn


@contextlib.contextmanager
def detached(on_ready: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Go on in a child. Yields, there, what to call when it serves.

    ``on_ready`` is run first, and may still print to standard output.
    """
    news, tell = os.pipe()
    words, standard_error = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        os.close(standard_error)
        _wait_and_exit(child, news, words)
    os.close(news)
    os.close(words)
    os.setsid()
    standard_output = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream, source in enumerate((nowhere, nowhere, standard_error)):
        os.dup2(source, stream)
    os.close(standard_error)

    def tell_ready() -> None:
        os.dup2(standard_output, 1)
        os.close(standard_output)
        on_ready()
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
        os.write(tell, b"!")
        os.close(tell)

    yield tell_ready


def _wait_and_exit(child: int, news: int, words: int) -> NoReturn:
    served = False
    try:
        served = _it_serves(news, words)
    finally:
        if not served:  # perhaps because a signal told us not to wait
            os.kill(child, signal.SIGTERM)
        os._exit(0 if served else 1)


def _it_serves(news: int, words: int) -> bool:
    """Pass on the child's words until it serves, or has gone without."""
    poll = select.poll()
    poll.register(news, select.POLLIN)
    poll.register(words, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if words not in ready:
            return os.read(news, 1) == b"!"
        text = os.read(words, 4096)
        if text:
            os.write(2, text)
        else:
            poll.unregister(words)
