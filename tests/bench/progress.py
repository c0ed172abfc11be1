"""progress - a bar on standard error where a person watches, and nothing elsewhere"""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 30  # characters of the bar


class Progress:
    """How far `total` runs have come. Usable in `with`, which clears the line at the end."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = max(total, 1)
        self._begun = -1  # runs; the one that goes on now is not done
        self._start = time.monotonic()
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show("")

    def tick(self, what: str) -> None:
        """The next run begins: `what` it is."""
        self._begun += 1
        done = min(self._begun, self._total)
        bar = "#" * (WIDTH * done // self._total)
        self._show(f"[{bar:.<{WIDTH}}] {done}/{self._total}{self._left(done)}  {what}")

    def _left(self, done: int) -> str:
        """The time that the rest will take, if it goes on as it did so far."""
        if not done:
            return ""
        seconds = round((time.monotonic() - self._start) / done * (self._total - done))
        return f"  {seconds // 60}:{seconds % 60:02d} left"

    def _show(self, line: str) -> None:
        if self._shown:
            self._stream.write(f"\r{line}\x1b[K")
            self._stream.flush()
