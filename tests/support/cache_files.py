"""A session cache's file, keys and rules in a temporary directory, without a daemon.

LMDB allows one open handle a file and process, so what has to happen at the same time happens in
forked children.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tlsmgr.sessions.cache import CacheRules, SessionCache
from tlsmgr.sessions.extent import MARK_BYTES
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import Store, StoreFile, create, map_size_for
from tlsmgr.shm import SharedMemory

MIB = 1024 * 1024


class CacheFiles:
    """The file of one cache, made as the parent makes it. ``claim`` keeps it ours."""

    def __init__(
        self,
        directory: Path,
        *,
        timeout: int = 3600,
        size_limit: int = 16 * MIB,
        entry_limit: int = 0,
        logging: bool = False,
        encrypted: bool = True,
    ) -> None:
        self.rules = CacheRules("smtp", timeout, size_limit, entry_limit, logging)
        memory = SharedMemory(65536)
        self.shared = SharedCache(memory, os.urandom(64), encrypted)
        mark = memory.carve(MARK_BYTES).cast("Q")
        self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.file = StoreFile(self.directory, "smtp.sessions", map_size_for(size_limit), mark)
        self.path = directory / self.file.name
        self.claim = create(self.file)
        self._open: list[SessionCache | Store] = []

    def cache(self) -> SessionCache:
        """The cache as a worker has it; what this process had open before is closed."""
        self.close()
        cache = SessionCache(self.rules, self.shared, Store(self.file))
        self._open.append(cache)
        return cache

    def store(self) -> Store:
        """The store; what this process had open before is closed."""
        self.close()
        store = Store(self.file)
        self._open.append(store)
        return store

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._open.pop().close()

    def remove(self) -> None:
        """The end: close everything."""
        self.close()
        os.close(self.claim)
        os.close(self.directory)


@contextlib.contextmanager
def held_open(files: CacheFiles, reading: bool = False) -> Iterator[None]:
    """Meanwhile another process has the file open, or is even in the middle of reading it.

    So the lock table is not made anew. At the end it is gone without having closed anything.
    """
    here, there = socket.socketpair()
    with here, there:
        pid = os.fork()
        if pid == 0:
            try:
                here.close()
                store = Store(files.file)
                if reading:
                    store.read(bytes(16))
                there.send(b"open")
                there.recv(1)
            finally:
                os._exit(0)
        there.close()
        assert here.recv(10) == b"open"
        yield
    os.waitpid(pid, 0)


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked child. Its exception or a signal fails the test."""
    result, status = end_of_child(work)
    assert status == 0, f"child ended with {status}: {result}"
    return result


def end_of_child(work: Callable[[], Any]) -> tuple[Any, int]:
    """What ``work`` returned in a forked child, and its exit status, negative for a signal.

    A child that hangs is ended by SIGALRM after half a minute.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _work_and_exit(work, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (pickle.loads(data) if data else None), status


def _work_and_exit(work: Callable[[], Any], writer: int) -> None:
    status = 1
    faulthandler.disable()  # a child that is killed is no news
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)
    try:
        try:
            result = work()
            status = 0
        except Exception as error:
            result = repr(error)
        with open(writer, "wb") as pipe:
            pipe.write(pickle.dumps(result))
    finally:
        os._exit(status)


def empty_all_branches(path: Path) -> None:
    """Damage that LMDB meets with an assertion: branch pages that say they have no entry."""
    with open(path, "r+b") as file:
        for page in range(2, path.stat().st_size // 4096):
            file.seek(page * 4096)
            if file.read(16)[10] & 1:  # mp_flags: P_BRANCH
                file.seek(page * 4096 + 12)  # mp_lower
                file.write(b"\x10\x00")
