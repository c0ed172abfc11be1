"""A cache that a successor goes on with, in the same file, while old workers still use it."""

from __future__ import annotations

import os
import socket

import pytest
from support.cache_files import CacheFiles, in_child
from support.cache_fixtures import NOW, MakeFiles, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.cache import Change, SessionCache
from tlsmgr.sessions.file import is_lost
from tlsmgr.sessions.seal import SAVED_BYTES, Nonces
from tlsmgr.sessions.shared import DRAIN_SLACK, MOST_OLDER, SharedCache, Usage
from tlsmgr.sessions.sweep import Sweep
from tlsmgr.shm import SharedMemory

DAEMONS = 40  # a reload every 90 seconds, while sessions live for an hour


def successor(shared: SharedCache, encrypted: bool = True, now: int = NOW) -> SharedCache:
    """The shared part of the next daemon's cache."""
    made = SharedCache(SharedMemory(65536), os.urandom(64), encrypted)
    made.inherit(shared.dump(now), 3600, now)
    return made


def cache_of(files: CacheFiles, shared: SharedCache) -> SessionCache:
    """The cache in a process of the daemon with that shared part."""
    file = files.file._replace(mark=shared.mark)
    assert not is_lost(file)
    return SessionCache(files.rules, shared, file, Nonces(os.getpid()))


@pytest.mark.parametrize("encrypted", [True, False])
def test_sessions_are_found_after_many_reloads(make_files: MakeFiles, encrypted: bool) -> None:
    """Under a key of each daemon in the chain, and nobody else's."""
    files = make_files(encrypted=encrypted)
    shared = files.shared
    for generation in range(DAEMONS):
        cache = cache_of(files, shared)
        for earlier in range(generation):
            assert lookup(cache, b"of %d" % earlier) == b"session %d" % earlier
        update(cache, (b"of %d" % generation, b"session %d" % generation))
        cache.close()
        shared = successor(shared, encrypted)
    records, _ = files.store().read_from(b"", 2 * DAEMONS)
    tags = {record.data[SAVED_BYTES] for record in records}
    assert len(tags) == (DAEMONS if encrypted else 1)


def test_both_generations_at_once(make_files: MakeFiles) -> None:
    """An old worker finds what it stored; of the new ones' it finds nothing, and harms nothing."""
    files = make_files()
    new = successor(files.shared)
    here, there = socket.socketpair()
    pid = os.fork()  # before the file is open here
    if pid == 0:
        try:
            there.recv(1)
            there.send(repr(new_worker(files, new)).encode())
        finally:
            os._exit(0)
    cache = cache_of(files, files.shared)
    update(cache, (b"old", b"session of the old"), (b"both", b"first"))
    assert lookup(cache, b"both") == b"first"
    here.send(b"!")
    found = here.recv(1000).decode()
    os.waitpid(pid, 0)
    assert found == "[b'session of the old', b'first', b'session of the new']"
    assert [lookup(cache, name) for name in (b"old", b"both", b"new")] == [
        b"session of the old",
        None,
        None,
    ]
    assert cache.expired == []
    cache.close()
    cache = cache_of(files, new)
    assert lookup(cache, b"new") == b"session of the new"
    assert lookup(cache, b"both") == b"second"
    cache.close()
    assert not files.shared.mark.is_damaged
    assert not new.mark.is_damaged
    here.close()
    there.close()


def new_worker(files: CacheFiles, shared: SharedCache) -> list[bytes | None]:
    """Look at what the old one stored, then store as well."""
    cache = cache_of(files, shared)
    found = [lookup(cache, name) for name in (b"old", b"both")]
    update(cache, (b"new", b"session of the new"), (b"both", b"second"))
    found.append(lookup(cache, b"new"))
    cache.close()
    return found


def test_what_the_old_one_stores_last_is_found(make_files: MakeFiles) -> None:
    files = make_files()
    new = successor(files.shared)
    cache = cache_of(files, files.shared)
    update(cache, (b"id", b"session"))
    cache.close()
    cache = cache_of(files, new)
    assert lookup(cache, b"id") == b"session"
    cache.close()


def test_new_sessions_are_never_under_an_inherited_key(make_files: MakeFiles) -> None:
    """Somebody who forged the message knows that one."""
    files = make_files()
    new = successor(files.shared)
    cache = cache_of(files, new)
    update(cache, (b"id", b"session"))
    cache.close()
    cache = cache_of(files, files.shared)
    assert lookup(cache, b"id") is None
    cache.close()


def test_keys_without_sessions_are_left_out() -> None:
    shared = SharedCache(SharedMemory(65536), os.urandom(64), True)
    for generation in range(4):
        shared = successor(shared, now=NOW + 1000 * generation)
    older = shared.dump(NOW + 10_000).older
    assert [key.until - NOW for key in older] == [10_000, 3000, 2000, 1000, 0]
    late = SharedCache(SharedMemory(65536), os.urandom(64), True)
    late.inherit(shared.dump(NOW + 5000), 3600, NOW + 5000)
    assert [key.until - NOW for key in late.dump(NOW + 10_000).older] == [10_000, 5000, 3000, 2000]


def test_keys_are_forgotten_when_their_sessions_have_expired(make_files: MakeFiles) -> None:
    """By the sweep in shared memory, and then by each process; what has not expired is found."""
    files = make_files(timeout=3600)
    first = cache_of(files, files.shared)
    update(first, (b"old", b"session"))
    first.close()
    second = successor(files.shared)
    third = successor(second, now=NOW + 3000)
    cache = cache_of(files, third)
    cache.apply([Change(b"new", b"session")], NOW + 3000)
    assert (third.key_count, cache._seal.key_count) == (3, 3)
    cache.close()
    file = files.file._replace(mark=third.mark)
    for now, left in ((NOW + 3600, 3), (NOW + 3600 + DRAIN_SLACK + 1, 2)):
        sweep = Sweep(files.rules, third, file, lambda _: None)
        assert sweep.run(float(now)) > 1, "to the end"
        assert third.key_count == left
    cache = cache_of(files, third)
    assert cache._seal.key_count == 2
    third.forget_older(3600, NOW + 3000 + 3600 + DRAIN_SLACK + 1)
    assert (third.key_count, cache._seal.key_count) == (1, 2)
    cache.note_usage()
    assert cache._seal.key_count == 1
    assert cache.lookup(b"new", NOW + 3001) == b"session"
    cache.close()


def test_many_reloads_in_a_row() -> None:
    """The last keys are kept, each with a tag of its own."""
    shared = SharedCache(SharedMemory(65536), os.urandom(64), True)
    for generation in range(600):
        shared = successor(shared, now=NOW + generation)
    older = shared.dump(NOW + 600).older
    assert [key.until - NOW for key in older] == list(range(600, 600 - MOST_OLDER, -1))
    tags = [older_key.tag for older_key in older]
    assert len(set(tags)) == MOST_OLDER
    assert tags == [(tags[-1] + MOST_OLDER - 1 - i) % 256 for i in range(MOST_OLDER)]


def test_renewed_keys_open_nothing_old(make_files: MakeFiles) -> None:
    files = make_files()
    new = successor(files.shared)
    new.renew(os.urandom(64))
    assert len(new.dump(NOW).older) == 1


def test_a_damaged_file_does_not_go_over(make_files: MakeFiles) -> None:
    files = make_files()
    assert files.shared.dump(NOW).mark.inode
    files.shared.mark.report_damage(files.shared.mark.inode)
    assert not files.shared.dump(NOW).mark.inode


def test_other_processes_see_how_full_it_is() -> None:
    """Those that do not open the file."""
    shared = SharedCache(SharedMemory(65536), bytes(64), True)
    assert shared.usage() == Usage(0, 0, 0, 0, 0.0)
    usage = Usage(7, 4096, 1 << 20, NOW, 5.5)
    in_child(lambda: shared.note_usage(usage))
    assert shared.usage() == usage


def test_secrets_are_not_shown() -> None:
    shared = SharedCache(SharedMemory(65536), bytes(range(64)), True)
    state = successor(shared).dump(NOW)
    text = repr((state, state.older))
    assert repr(bytes(range(32)))[2:-1] not in text
    assert repr(bytes(range(32, 64)))[2:-1] not in text
