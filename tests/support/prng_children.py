"""Forked children for the tests of shared memory and the pool: run, stop, kill and reap them."""

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator

import pytest

LIMIT = 30.0  # seconds after which a child that does not do what it should is a failure

_alive: set[int] = set()


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child and return its pid; the child's exit status is 0 if it returns."""
    pid = os.fork()
    if pid:
        _alive.add(pid)
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def reap(pid: int, limit: float = LIMIT) -> int:
    """Wait for the end of a child; return its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(_wait(pid, 0, limit))


def run(work: Callable[[], object]) -> None:
    """Run `work` in a child, which must return."""
    assert reap(fork(work)) == 0


def wait_until_stopped(pid: int) -> None:
    """Wait until a child has stopped itself."""
    assert os.WIFSTOPPED(_wait(pid, os.WUNTRACED, LIMIT)), f"child {pid} ended instead of stopping"


def kill(pid: int) -> None:
    """Kill a child and reap it."""
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == -signal.SIGKILL


def die() -> None:
    """Be killed, here and now."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Be stopped, until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_for(condition: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Kill what a failed test left, stopped or running; import this name to have it."""
    yield
    for pid in list(_alive):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _alive.discard(pid)


def _wait(pid: int, options: int, limit: float) -> int:
    """Wait for a child, but not for ever."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, options | os.WNOHANG)
        if found:
            if not os.WIFSTOPPED(status):
                _alive.discard(pid)
            return status
        time.sleep(0.0005)
    raise AssertionError(f"child {pid} did not end in {limit:g} s")
