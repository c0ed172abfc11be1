"""Session caches made for a test, and the three requests as a worker makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from support.cache_files import MIB, CacheFiles

from tlsmgr.sessions.cache import Change, SessionCache, Take

NOW = 1_795_220_454
T = 120


class MakeFiles(Protocol):
    def __call__(
        self,
        *,
        timeout: int = T,
        size_limit: int = 16 * MIB,
        entry_limit: int = 0,
        logging: bool = False,
        encrypted: bool = True,
        single_use: str = "no",
    ) -> CacheFiles: ...


@pytest.fixture
def make_files(tmp_path: Path) -> Iterator[MakeFiles]:
    made: list[CacheFiles] = []

    def make(
        *,
        timeout: int = T,
        size_limit: int = 16 * MIB,
        entry_limit: int = 0,
        logging: bool = False,
        encrypted: bool = True,
        single_use: str = "no",
    ) -> CacheFiles:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(
            CacheFiles(
                directory,
                timeout=timeout,
                size_limit=size_limit,
                entry_limit=entry_limit,
                logging=logging,
                encrypted=encrypted,
                single_use=single_use,
            )
        )
        return made[-1]

    yield make
    for files in made:
        files.remove()


def update(cache: SessionCache, *entries: tuple[bytes, bytes], now: int = NOW) -> None:
    """Updates as one batch; each is answered as done."""
    changes = [Change(cache_id, session) for cache_id, session in entries]
    assert cache.apply(changes, now) == [True] * len(changes)


def delete(cache: SessionCache, cache_id: bytes, now: int = NOW) -> bool:
    (done,) = cache.apply([Change(cache_id, None)], now)
    return done


def lookup(cache: SessionCache, cache_id: bytes, now: int = NOW) -> bytes | None:
    """A lookup in a turn of its own."""
    found = cache.lookup(cache_id, now)
    cache.end_reading()
    assert not isinstance(found, Take)
    return found
