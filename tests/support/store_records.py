"""Records by number, and a session file to put them in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cache_files import CacheFiles

from tlsmgr.sessions.seal import SERIAL_BYTES
from tlsmgr.sessions.store import Record, Store


def serial(number: int) -> bytes:
    return number.to_bytes(SERIAL_BYTES, "big")


def digest(number: int) -> bytes:
    return number.to_bytes(16, "little")


def record(number: int, size: int = 1200, of: int | None = None) -> Record:
    """The record of this serial, under the digest of the same number if not ``of`` another."""
    return Record(
        digest(number if of is None else of),
        serial(number),
        serial(number) * (size // SERIAL_BYTES),
    )


def put(store: Store, *numbers: int, size: int = 1200) -> None:
    """One batch: records of these serials under the digests of the same numbers."""
    with store.writing() as batch:
        for number in numbers:
            batch.put(record(number, size))


@pytest.fixture
def files(tmp_path: Path) -> Iterator[CacheFiles]:
    files = CacheFiles(tmp_path)
    yield files
    files.remove()
