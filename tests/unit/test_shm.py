"""Shared memory: areas, limits, names, and what the kernel keeps of it."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import posix_ipc
import pytest
from support.checkout import CHECKOUT
from support.memory_kinds import kind as kind
from support.memory_kinds import refuse_posix
from support.own_descriptors import own_descriptors
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_children import run
from support.prng_fixtures import memory as memory

from tlsmgr.shm import ALIGNMENT, Lock, SharedMemory, SharedMemoryError

NOBODY = 65534


@pytest.mark.usefixtures("kind")
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


@pytest.mark.usefixtures("kind")
def test_too_much_memory_is_a_clear_error() -> None:
    with pytest.raises(SharedMemoryError, match="cannot create shared memory"):
        SharedMemory(1 << 60)


@pytest.mark.usefixtures("kind")
def test_children_share_it(memory: SharedMemory) -> None:
    area = memory.carve(5)
    run(lambda: area.__setitem__(slice(None), b"child"))
    assert bytes(area) == b"child"


def names_made(monkeypatch: pytest.MonkeyPatch, count: int) -> set[str]:
    """Return the names that `count` locks and their memory had for a moment."""
    made: set[str] = set()
    for name in ("SharedMemory", "Semaphore"):
        make = getattr(posix_ipc, name)

        def noting(name: str, *args: int, make: Any = make, **options: int) -> Any:
            made.add(name)
            return make(name, *args, **options)

        monkeypatch.setattr(posix_ipc, name, noting)
    for _ in range(count):
        Lock(SharedMemory(4096), 2)
    return made


def test_no_name_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names_made(monkeypatch, 1):
        assert not Path("/dev/shm" + name).exists()
        assert not Path("/dev/shm/sem." + name[1:]).exists()


def test_names_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(names_made(monkeypatch, 50)) == 100


@pytest.mark.parametrize("name", ["SharedMemory", "Semaphore"])
def test_a_signal_leaves_no_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It may come just when the name was made, and end the process by an exception."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    def check() -> None:
        make = getattr(posix_ipc, name)

        def make_and_signal(*args: Any, **options: int) -> Any:
            made = make(*args, **options)
            os.kill(os.getpid(), signal.SIGINT)
            return made

        monkeypatch.setattr(posix_ipc, name, make_and_signal)
        signal.signal(signal.SIGINT, end)
        before = set(os.listdir("/dev/shm"))
        with pytest.raises(KeyboardInterrupt):
            Lock(SharedMemory(4096), 2)
        assert set(os.listdir("/dev/shm")) <= before

    run(check)


def test_it_works_without_a_descriptor(kind: str) -> None:
    """As in a child, which closes all that it does not know; Python's mmap keeps a copy of one."""

    def check() -> None:
        before = own_descriptors()
        memory = SharedMemory(4096)
        lock = Lock(memory, 2)
        opened = own_descriptors() - before
        assert len(opened) == (kind == "posix")
        for descriptor in opened:
            os.close(int(descriptor))
        assert lock.acquire(0, 0)
        memory.carve(1)[:] = b"x"
        os._exit(0)  # or the mapping's end would close it again

    run(check)


def test_wipe_leaves_zeros(memory: SharedMemory) -> None:
    area = memory.carve(1000)
    area[:] = b"x" * 1000
    memory.wipe()
    assert bytes(area) == bytes(1000)


def flags_of_mapping(first: memoryview) -> list[str]:
    """The kernel's flags of the mapping that starts with this area."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(first))
    text = Path("/proc/self/smaps").read_text().partition(f"{start:x}-")[2]
    flags = next(line for line in text.splitlines() if line.startswith("VmFlags:"))
    return flags.split()[1:]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize(("limit", "locked"), [(1 << 20, True), (0, False)])
def test_no_core_file_and_no_swap_within_the_limit(limit: int, locked: bool) -> None:
    def check() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        if os.getuid() == 0:
            os.setuid(NOBODY)
        area = SharedMemory(4096).carve(1)
        flags = flags_of_mapping(area)
        assert "dd" in flags  # proc(5): do not include area into core dump
        assert ("lo" in flags) == locked
        area[:] = b"x"

    if locked and os.getuid() != 0 and resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] < limit:
        pytest.skip("the limit on locked memory is too low")
    run(check)


# Where POSIX objects cannot be had


def test_nothing_to_warn_of_where_they_can(memory: SharedMemory) -> None:
    Lock(memory, 2)
    assert memory.fallback == ""


@pytest.mark.parametrize("name", ["SharedMemory", "Semaphore"])
def test_each_is_replaced_for_itself(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse_posix(monkeypatch, name)
    memory = SharedMemory(4096)
    lock = Lock(memory, 2)
    what = "shared memory" if name == "SharedMemory" else "semaphores"
    assert memory.fallback == (
        f"cannot use POSIX {what} in /dev/shm: Permission denied;"
        f" using unnamed {what} instead, service is not affected"
    )
    assert lock.acquire(1, 0)
    assert not lock.acquire(0, 0)


def test_one_warning_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_posix(monkeypatch, "SharedMemory", "Semaphore")
    memory = SharedMemory(4096)
    before = memory.fallback
    Lock(memory, 2)
    Lock(memory, 2)
    assert memory.fallback == before


def test_no_room_for_an_unnamed_semaphore(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_posix(monkeypatch, "Semaphore")
    memory = SharedMemory(64)
    with pytest.raises(SharedMemoryError, match="full"):
        Lock(memory, 2)


USE = """
import os
from tlsmgr.prng.pool import Pool
from tlsmgr.shm import SharedMemory
memory = SharedMemory(200_000)
pool = Pool(memory, 2)
pid = os.fork()
if pid == 0:
    pool.attach(1)
    os._exit(len(pool.extract(32)))
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(memory.fallback, status, len(pool.extract(32)), sep="|")
"""
"""A parent and a child draw on a pool."""


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (
            "mount -t tmpfs -o size=8k none /dev/shm && cat /dev/zero >/dev/shm/filler",
            "No space left",
        ),
        ("mount -t tmpfs -o size=64k none /dev/shm", "No space left on device"),
        ("mount -t tmpfs none /dev", "No such file or directory"),
        ("mount -t tmpfs -o ro none /dev/shm", "Read-only file system"),
    ],
    ids=["full", "too small", "missing", "read-only"],
)
def test_dev_shm_is(arrange: str, reason: str) -> None:
    script = f'({arrange}) 2>/dev/null; exec "$0" -c "$1"'
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("cannot have mounts of its own: needs root")
    done = subprocess.run(
        [*unshare, "sh", "-c", script, sys.executable, USE],
        capture_output=True,
        text=True,
        check=True,
        cwd=CHECKOUT,
    )
    fallback, child, parent = done.stdout.strip().split("|")
    assert fallback.startswith(f"cannot use POSIX shared memory in /dev/shm: {reason}")
    assert (child, parent) == ("32", "32")
