"""A pool that records its calls, for tests of the sources that are stirred into it."""

import os

import pytest

from tlsmgr.prng.pool import Pool
from tlsmgr.shm import SharedMemory


class RecordingPool(Pool):
    """A pool that remembers what was stirred into it, and whose kernel may fail."""

    def __init__(self) -> None:
        self.stirred: list[bytes] = []
        self.broken = False
        super().__init__(SharedMemory(4096), 3, self._random)

    def _random(self, n: int) -> bytes:
        if self.broken:
            raise OSError(38, "Function not implemented")
        return os.getrandom(n)

    def stir(self, data: bytes) -> None:
        self.stirred.append(data)
        super().stir(data)


@pytest.fixture
def pool() -> RecordingPool:
    return RecordingPool()


def warnings(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The texts of the warnings logged since the last call."""
    lines = capfd.readouterr().err.splitlines()
    return [line.partition("warning: ")[2] for line in lines if "warning: " in line]
