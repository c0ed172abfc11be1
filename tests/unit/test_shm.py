"""Shared memory: areas, limits, names, and what the kernel keeps of it."""

import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Any

import posix_ipc
import pytest
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_children import run
from support.prng_fixtures import memory as memory

from tlsmgr.shm import ALIGNMENT, Lock, SharedMemory, SharedMemoryError

NOBODY = 65534


def test_areas_are_zero_aligned_and_apart(memory: SharedMemory) -> None:
    first, second, third = memory.carve(1), memory.carve(130), memory.carve(64)
    assert bytes(second) == bytes(130)
    first[:], second[:], third[:] = b"a", b"b" * 130, b"c" * 64
    whole = bytes(memory._bytes)
    assert whole[:1] == b"a"
    assert whole[ALIGNMENT : ALIGNMENT + 130] == b"b" * 130
    assert whole[4 * ALIGNMENT : 5 * ALIGNMENT] == b"c" * 64
    assert whole.count(0) == len(whole) - 1 - 130 - 64


def test_full_memory_is_a_clear_error() -> None:
    memory = SharedMemory(128)
    memory.carve(65)
    with pytest.raises(SharedMemoryError, match="1 bytes wanted, 0 left"):
        memory.carve(1)


def test_last_area_may_end_anywhere() -> None:
    memory = SharedMemory(100)
    memory.carve(64)
    assert len(memory.carve(36)) == 36
    with pytest.raises(SharedMemoryError, match="full"):
        memory.carve(1)


def test_too_much_memory_is_a_clear_error() -> None:
    with pytest.raises(SharedMemoryError, match="cannot create shared memory"):
        SharedMemory(1 << 60)


def test_children_share_it(memory: SharedMemory) -> None:
    area = memory.carve(5)
    run(lambda: area.__setitem__(slice(None), b"child"))
    assert bytes(area) == b"child"


def names_made(monkeypatch: pytest.MonkeyPatch, count: int) -> set[str]:
    """The names that so many locks and their memory had for a moment."""
    made: set[str] = set()
    for kind in ("SharedMemory", "Semaphore"):
        make = getattr(posix_ipc, kind)

        def noting(name: str, *args: int, make: Any = make, **options: int) -> Any:
            made.add(name)
            return make(name, *args, **options)

        monkeypatch.setattr(posix_ipc, kind, noting)
    for _ in range(count):
        Lock(SharedMemory(4096), 2)
    return made


def test_no_name_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names_made(monkeypatch, 1):
        assert not Path("/dev/shm" + name).exists()
        assert not Path("/dev/shm/sem." + name[1:]).exists()


def test_names_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(names_made(monkeypatch, 50)) == 100


@pytest.mark.parametrize("kind", ["SharedMemory", "Semaphore"])
def test_a_signal_leaves_no_name(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It may come just when the name was made, and end the process by an exception."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    def check() -> None:
        make = getattr(posix_ipc, kind)

        def make_and_signal(*args: Any, **options: int) -> Any:
            made = make(*args, **options)
            os.kill(os.getpid(), signal.SIGINT)
            return made

        monkeypatch.setattr(posix_ipc, kind, make_and_signal)
        signal.signal(signal.SIGINT, end)
        before = set(os.listdir("/dev/shm"))
        with pytest.raises(KeyboardInterrupt):
            Lock(SharedMemory(4096), 2)
        assert set(os.listdir("/dev/shm")) <= before

    run(check)


def test_wipe_leaves_zeros(memory: SharedMemory) -> None:
    area = memory.carve(1000)
    area[:] = b"x" * 1000
    memory.wipe()
    assert bytes(area) == bytes(1000)


def test_close_unmaps() -> None:
    def names() -> int:
        return Path("/proc/self/maps").read_text().count("/dev/shm/tlsmgr-")

    before = names()
    memory = SharedMemory(4096)
    assert names() == before + 1
    memory.close()
    assert names() == before


def test_close_with_areas_in_use_is_no_error(memory: SharedMemory) -> None:
    area = memory.carve(10)
    memory.close()
    area[:] = b"still here"
    assert bytes(area) == b"still here"


def flags_of_mapping(first: memoryview) -> list[str]:
    """The kernel's flags of the mapping that starts with this area."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(first))
    text = Path("/proc/self/smaps").read_text().partition(f"{start:x}-")[2]
    flags = next(line for line in text.splitlines() if line.startswith("VmFlags:"))
    return flags.split()[1:]


def test_is_no_part_of_a_core_file() -> None:
    def check() -> None:
        memory = SharedMemory(4096)
        area = memory.carve(1)
        assert "dd" in flags_of_mapping(area)  # proc(5): do not include area into core dump
        assert ("lo" in flags_of_mapping(area)) == memory.locked

    run(check)


def test_is_not_locked_beyond_the_limit() -> None:
    def check() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        if os.getuid() == 0:
            os.setuid(NOBODY)
        memory = SharedMemory(4096)
        assert not memory.locked
        memory.carve(1)[:] = b"x"

    run(check)
