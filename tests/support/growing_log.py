"""growing_log - the lines that a log gets, while it is written."""

from __future__ import annotations

from pathlib import Path


class GrowingLog:
    """A log file, from ``offset`` bytes on. postlogd(8) makes the file with the first line."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset

    def fresh(self) -> bytes:
        """Return the lines that are complete, and were not returned before."""
        if not self._path.exists():
            return b""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            text, end, _ = log.read().rpartition(b"\n")
        self._offset += len(text + end)
        return text
