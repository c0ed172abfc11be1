"""machine_pace - how long the machine itself has a client wait: for a process that only echoes.

A server is held against it where a test may run beside others: both are kept from running alike.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time

PAUSE = 0.002  # seconds between two requests


class MachinePace(threading.Thread):
    """A client of cat(1), until ``stop``."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._waits: list[tuple[float, float]] = []  # when it began, seconds
        self._stop_asked = threading.Event()
        self._server = subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.start()

    def run(self) -> None:
        """Ask again and again."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        asks, answers = self._server.stdin.fileno(), self._server.stdout.fileno()
        while not self._stop_asked.wait(PAUSE):
            began = time.monotonic()
            os.write(asks, b"x")
            os.read(answers, 1)
            self._waits.append((began, time.monotonic() - began))

    def stop(self) -> None:
        """End the client and the server."""
        self._stop_asked.set()
        self.join()
        self._server.communicate()

    def waits_since(self, moment: float) -> list[float]:
        """Return the sorted waits of the requests from that time of time.monotonic() on."""
        return sorted(seconds for began, seconds in self._waits if began >= moment)
