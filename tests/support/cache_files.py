"""A session cache's file, keys and rules in a temporary directory, without a daemon.

LMDB allows one open handle a file and process, so what has to happen at the same time happens in
forked children.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tlsmgr.sessions.cache import SessionCache
from tlsmgr.sessions.file import StoreFile, map_size_for
from tlsmgr.sessions.rules import CacheRules
from tlsmgr.sessions.seal import Nonces
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.single_use import make_cache
from tlsmgr.sessions.store import Record, Store, create
from tlsmgr.shm import SharedMemory

MIB = 1024 * 1024
PR_SET_PDEATHSIG = 1  # prctl(2): a stopped child goes with a test that fails


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
        map_size: int = 0,
        single_use: str = "no",
    ) -> None:
        """``map_size``: as if the disk had room for no more than that."""
        self.rules = CacheRules("smtp", timeout, size_limit, entry_limit, logging, single_use)
        memory = SharedMemory(65536)
        self.shared = SharedCache(memory, os.urandom(64), encrypted)
        self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        size = map_size or map_size_for(size_limit)
        self.file = StoreFile(self.directory, "smtp.sessions", size, self.shared.mark)
        self.path = directory / self.file.name
        self.claim = create(self.file)
        self._open: list[SessionCache | Store] = []

    def cache(self) -> SessionCache:
        """The cache as a worker has it; what this process had open before is closed."""
        self.close()
        cache = make_cache(self.rules, self.shared, self.file, Nonces(os.getpid()))
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
        with contextlib.suppress(OSError):
            os.truncate(self.path, 0)  # all its disk space
        os.close(self.claim)
        os.close(self.directory)


@contextlib.contextmanager
def held_open(files: CacheFiles, reading: bool = False) -> Iterator[None]:
    """Meanwhile another process has the file open, or is even in the middle of reading it.

    So the lock table is not made again. At the end the process exits without closing anything.
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


class OtherWriter:
    """Another process that writes to the file, and stops in the middle of the transaction.

    Made before this process opens the file: LMDB's handles don't survive a fork.
    """

    def __init__(self, files: CacheFiles) -> None:
        self._here, there = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                self._here.close()
                while there.recv(1):
                    with contextlib.closing(Store(files.file)) as store, store.writing() as batch:
                        batch.put(Record(b"of another one..", batch.next_serial(), b"data"))
                        os.kill(os.getpid(), signal.SIGSTOP)
                    there.send(b"x")
            finally:
                os._exit(0)
        there.close()

    def stop(self) -> None:
        """Have it begin a transaction and stop."""
        self._here.send(b"x")
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def go_on(self) -> None:
        """Have it commit the transaction."""
        os.kill(self.pid, signal.SIGCONT)
        assert self._here.recv(1) == b"x"

    def kill(self) -> None:
        """The end of it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._here.close()


def in_child(work: Callable[[], Any]) -> Any:
    """Return the result of ``work`` in a forked child. Its exception or a signal fails the test."""
    result, status = end_of_child(work)
    assert status == 0, f"child ended with {status}: {result}"
    return result


def end_of_child(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of ``work`` in a forked child, and its exit status, negative for a signal.

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


def empty_root_page(path: Path) -> None:
    """The same damage at the page that every process reads when it opens the file."""
    with open(path, "r+b") as file:
        metas = [struct.unpack_from("<128xQ8xQ", file.read(4096)) for _ in range(2)]
        root, _ = max(metas, key=lambda meta: meta[1])  # root of the main table, transaction
        file.seek(root * 4096 + 10)
        file.write(b"\x01\x00\x10\x00")  # mp_flags: P_BRANCH; mp_lower
