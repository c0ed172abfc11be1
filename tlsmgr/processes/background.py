"""background - leave the terminal: what ``--daemon`` does, and the answer to "has it started?".

The process forks; the child leaves the session, and its standard streams go to /dev/null once it
serves. The first process waits for it and then exits: status 0 when the workers serve, so that a
script may rely on it, else 1, after the child said on standard error why.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def detached(on_ready: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Go on in a child. Yields, there, what to call when it serves; ``on_ready`` is run first."""
    news, tell = os.pipe()
    if os.fork():
        os.close(tell)
        served = os.read(news, 1) == b"!"
        os._exit(0 if served else 1)
    os.close(news)
    os.setsid()

    def tell_ready() -> None:
        on_ready()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
        os.write(tell, b"!")
        os.close(tell)

    yield tell_ready
