"""daemonize - go to the background: what ``--daemon`` does.

The process forks. The child leaves the session and the terminal. The first process passes on what
the child writes to standard error, waits until the workers serve, and exits: status 0 when they
serve, 1 when they do not. So a script may rely on the status, and a reader of the first process's
output does not wait for the end of the daemon: neither the child nor the workers keep a descriptor
of the terminal.
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
    """Continue in a child. Yield, in the child, the function to call when the workers serve.

    That function first calls ``on_ready``, which may still print to standard output.
    """
    ready_r, ready_w = os.pipe()
    stderr_r, stderr_w = os.pipe()
    child = os.fork()
    if child:
        os.close(ready_w)
        os.close(stderr_w)
        _wait_and_exit(child, ready_r, stderr_r)
    os.close(ready_r)
    os.close(stderr_r)
    os.setsid()
    stdout = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream, source in enumerate((null, null, stderr_w)):
        os.dup2(source, stream)
    os.close(stderr_w)

    def report_ready() -> None:
        os.dup2(stdout, 1)
        os.close(stdout)
        on_ready()
        for stream in (1, 2):
            os.dup2(null, stream)
        os.close(null)
        os.write(ready_w, b"!")
        os.close(ready_w)

    yield report_ready


def _wait_and_exit(child: int, ready_r: int, stderr_r: int) -> NoReturn:
    serves = False
    try:
        serves = _becomes_ready(ready_r, stderr_r)
    finally:
        if not serves:  # it failed, or a signal ended the wait
            os.kill(child, signal.SIGTERM)
        os._exit(0 if serves else 1)


def _becomes_ready(ready_r: int, stderr_r: int) -> bool:
    """Pass on the child's standard error; return whether the workers serve, or False at its end."""
    poll = select.poll()
    poll.register(ready_r, select.POLLIN)
    poll.register(stderr_r, select.POLLIN)
    while True:
        events = dict(poll.poll())
        if stderr_r not in events:
            return os.read(ready_r, 1) == b"!"
        text = os.read(stderr_r, 4096)
        if text:
            os.write(2, text)
        else:
            poll.unregister(stderr_r)
