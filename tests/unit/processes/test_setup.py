"""What a start cannot do without: one fatal line says what it lacks."""

from __future__ import annotations

import errno
import os
import resource
from functools import partial
from pathlib import Path

import pytest
from support.cache_files import in_child

from tlsmgr.config.load import Configuration, load
from tlsmgr.log import Fatal
from tlsmgr.prng import pool
from tlsmgr.prng.drbg import SelfTestError
from tlsmgr.processes import setup
from tlsmgr.shm import SharedMemory


@pytest.fixture
def conf(tmp_path: Path) -> Configuration:
    """A configuration with the defaults alone."""
    return load(str(tmp_path), pytest.fail, optional=True)


def test_no_shared_memory(conf: Configuration) -> None:
    """The limit of a process's memory is reached."""

    def start() -> str:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
        try:
            setup.make_memory(conf)
        except Fatal as error:
            return error.text
        return ""

    assert in_child(start) == f"cannot create shared memory: {os.strerror(errno.ENOMEM)}"


def no_kernel_generator(size: int) -> bytes:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def fail_self_test() -> None:
    raise SelfTestError("known-answer test failed")


def test_a_pool_without_memory(conf: Configuration) -> None:
    with pytest.raises(Fatal, match="shared memory is full: "):
        setup.make_pool(conf, SharedMemory(64))


def test_a_pool_without_entropy(conf: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "Pool", partial(pool.Pool, kernel=no_kernel_generator))
    with pytest.raises(Fatal):
        setup.make_pool(conf, SharedMemory(1 << 17))


def test_a_pool_that_fails_its_test(conf: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "self_test", fail_self_test)
    with pytest.raises(Fatal, match="known-answer test failed"):
        setup.make_pool(conf, SharedMemory(1 << 17))


def test_one_worker_for_each_processor(conf: Configuration, tmp_path: Path) -> None:
    """Of those that the daemon may use; a number that is set counts instead."""

    def count(cpus: set[int]) -> int:
        os.sched_setaffinity(0, cpus)
        return setup.worker_count(conf)

    mine = os.sched_getaffinity(0)
    for cpus in (mine, {min(mine)}):
        assert in_child(partial(count, cpus)) == len(cpus)
    three = ["tlsmgr_worker_processes=3"]
    assert setup.worker_count(load(str(tmp_path), pytest.fail, overrides=three, optional=True)) == 3
