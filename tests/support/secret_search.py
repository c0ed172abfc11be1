"""secret_search - files and memory that hold a secret, whole or in part, as it is or as text.

A part is the first or the last 16 bytes. Text is hexadecimal, or base64 at any place in a longer
one. Of a file all that is allocated is read; the rest of it is zeros.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

PART = 16  # bytes of a secret
BLOCK, OVERLAP = 4096, 64  # bytes


class Contents:
    """What files have held: each block once, with the path where it was seen first."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, Path] = {}
        self.looks = 0

    def look(self, *directories: Path) -> None:
        """Read all files below these directories."""
        self.looks += 1
        for path in _files_below(directories):
            with contextlib.suppress(FileNotFoundError):  # it has just gone
                data = _allocated(path)
                for at in range(0, len(data), BLOCK):
                    self._blocks.setdefault(data[at : at + BLOCK + OVERLAP], path)

    def paths(self) -> set[Path]:
        """Return where blocks were seen first."""
        return set(self._blocks.values())

    def with_secret(self, secrets: Iterable[bytes]) -> set[Path]:
        """Return the files that held one of these secrets."""
        wanted = list(_forms(secrets))
        blocks = self._blocks.items()
        return {path for block, path in blocks if any(form in block for form in wanted)}


def in_memory(pid: int, secrets: Iterable[bytes]) -> set[bytes]:
    """Return those of the secrets that the process has in its memory as they are. Needs root."""
    left, found = set(secrets), set[bytes]()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            start, end = (int(text, 16) for text in place.split("-"))
            if rights.startswith("rw") and ".sessions" not in line:
                with contextlib.suppress(OSError, ValueError):  # it is not mapped any more
                    memory.seek(start)
                    data = memory.read(end - start)
                    found |= {secret for secret in left - found if secret[:PART] in data}
    return found


def _forms(secrets: Iterable[bytes]) -> Iterator[bytes]:
    for secret in secrets:
        assert len(secret) >= PART
        assert len(set(secret)) > PART // 2, "not random"
        for part in (secret[:PART], secret[-PART:]):
            yield part
            yield part.hex().encode()
            for before in range(3):
                text = base64.b64encode(bytes(before) + part)
                yield text[4 if before else 0 : -4]


def _files_below(directories: Iterable[Path]) -> Iterator[Path]:
    for directory in directories:
        for top, _, names in os.walk(directory):
            paths = (Path(top, name) for name in names)
            yield from (path for path in paths if path.is_file() and not path.is_symlink())


def _allocated(path: Path) -> bytes:
    """Return the parts of the file that are not holes, one behind the other."""
    parts = []
    with open(path, "rb", 0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: no data any more
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            parts.append(os.pread(file.fileno(), at - start, start))
    return b"".join(parts)
