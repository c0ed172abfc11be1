"""No session and no id on the disk, and no record in another's place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.cache_files import CacheFiles, in_child
from support.cache_fixtures import NOW, MakeFiles, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.cache import SessionCache
from tlsmgr.sessions.seal import (
    NONCE_BYTES,
    SAVED_BYTES,
    SERIAL_BYTES,
    Entry,
    Nonces,
    Seal,
    SealKey,
)
from tlsmgr.sessions.shared import ProcessNumber
from tlsmgr.sessions.store import Record, Store

PAGE = 4096  # bytes


def test_the_file_shows_no_session_and_no_id(make_files: MakeFiles) -> None:
    files = make_files()
    cache = files.cache()
    sessions = {b"smtp&mail%d.example.com&" % n: os.urandom(1500) for n in range(100)}
    update(cache, *sessions.items())
    update(cache, (b"smtp&a host of one large session&", large := os.urandom(100_000)))
    files.close()
    raw = b"".join(path.read_bytes() for path in files.path.parent.iterdir())
    assert b"example" not in raw
    assert b"a host of" not in raw
    secrets = (*sessions.values(), large)
    pieces = {secret[at : at + 8] for secret in secrets for at in range(0, len(secret) - 7, 8)}
    used = [at for at in range(0, len(raw), PAGE) if any(raw[at : at + PAGE])]
    assert len(used) > 30
    assert not any(raw[at : at + 8] in pieces for page in used for at in range(page, page + PAGE))


def test_without_encryption_the_file_shows_them(make_files: MakeFiles) -> None:
    """So that the search above is known to find what there is."""
    files = make_files(encrypted=False, logging=True)
    update(files.cache(), (b"smtp&example.com&", session := os.urandom(1500)))
    files.close()
    raw = files.path.read_bytes()
    assert session[8:16] in raw
    assert b"example" in raw


def test_another_key_reads_nothing(make_files: MakeFiles) -> None:
    files, others = make_files(), make_files()
    update(files.cache(), (b"id", b"session"))
    files.close()
    files.shared = others.shared
    cache = files.cache()
    assert lookup(cache, b"id") is None
    # Even under the same digest key: the session's key is another.
    digest_key = os.urandom(32)
    seal, digest = Seal(SealKey(0, os.urandom(32)), digest_key, Nonces(1)), bytes(16)
    data = seal.encrypt(digest, bytes(8), Entry(NOW, b"id", b"session"))
    assert Seal(SealKey(0, os.urandom(32)), digest_key).decrypt(digest, bytes(8), data) is None


@pytest.mark.parametrize("encrypted", [True, False])
def test_swapped_records_are_refused(make_files: MakeFiles, encrypted: bool) -> None:
    """A user who can write the file can delete sessions, but not exchange those of two clients."""
    files = make_files(encrypted=encrypted)
    update(files.cache(), (b"a", b"session of a"), (b"b", b"session of b"))
    seal = files.shared.seal()
    store = files.store()
    a, b = store.read(seal.digest(b"a")), store.read(seal.digest(b"b"))
    assert a is not None
    assert b is not None
    store.end_reading()

    def check_that_nothing_is_found() -> None:
        cache = files.cache()
        assert lookup(cache, b"a") is None
        assert lookup(cache, b"b") is None

    swaps = [
        (Record(a.digest, a.serial, b.data), Record(b.digest, b.serial, a.data)),
        (Record(a.digest, b.serial, b.data), Record(b.digest, a.serial, a.data)),
        (b, a),
    ]
    for at_a, at_b in swaps if encrypted else swaps[2:]:
        with files.store().writing() as batch:
            for place, (digest, serial, data) in ((a.serial, at_a), (b.serial, at_b)):
                assert batch._txn.put(place, serial + digest + data, db=batch._records)
        check_that_nothing_is_found()

    with files.store().writing() as batch:  # the right records, and the wrong ways to them
        for place, (digest, serial, data), other in ((a.serial, a, b), (b.serial, b, a)):
            assert batch._txn.put(place, serial + digest + data, db=batch._records)
            assert batch._txn.put(other.digest, place + place, db=batch._places)
    check_that_nothing_is_found()


def test_a_serial_is_larger_than_all_before(make_files: MakeFiles) -> None:
    """Whichever process gives it out; it comes from the file, in the transaction."""
    files = make_files()

    def take() -> list[bytes]:
        serials = []
        store = Store(files.file)
        for number in range(3):
            with store.writing() as batch:
                for _ in range(3):
                    serials.append(batch.next_serial())
                    batch.put(Record(b"%16d" % number, serials[-1], b""))
            with pytest.raises(ZeroDivisionError), store.writing() as batch:  # noqa: PT012
                batch.put(Record(b"dropped" + bytes(9), batch.next_serial(), b""))
                raise ZeroDivisionError
        store.close()
        return serials

    taken = [serial for _ in range(3) for serial in in_child(take)]
    assert len(taken) == 27
    assert taken == sorted(set(taken))
    assert {len(serial) for serial in taken} == {SERIAL_BYTES}


def test_no_nonce_is_used_twice_even_without_a_lock(make_files: MakeFiles, tmp_path: Path) -> None:
    """Processes under one key that write at once, as with two lock tables on one file.

    A nonce does not depend on a lock: here each writes to a file of its own.
    """
    processes, sessions = 4, 500
    files = make_files()
    number = ProcessNumber()
    copies = []
    for i in range(processes):
        (tmp_path / f"copy {i}").mkdir()
        copies.append(CacheFiles(tmp_path / f"copy {i}"))
        copies[-1].shared = files.shared

    def write(copy: CacheFiles) -> None:
        cache = SessionCache(copy.rules, copy.shared, copy.file, Nonces(number.value))
        for i in range(sessions):
            update(cache, (b"%d" % i, b"session"))
            update(cache, (b"again", b"session %d" % i))
        cache.close()

    pids = []
    for copy in copies:
        number.advance()  # as the parent does
        pid = os.fork()
        if pid == 0:
            try:
                write(copy)
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * processes
    nonces = []
    for copy in copies:
        records, _ = copy.store().read_from(b"", 2 * sessions)
        nonces += [record.data[SAVED_BYTES : SAVED_BYTES + NONCE_BYTES] for record in records]
        copy.remove()
    assert len(nonces) == len(set(nonces)) == processes * (sessions + 1)


def test_a_seal_without_nonces_encrypts_nothing() -> None:
    seal = Seal(SealKey(0, bytes(32)), bytes(32))
    with pytest.raises(ValueError, match="without nonces"):
        seal.encrypt(bytes(16), bytes(8), Entry(NOW, b"", b"session"))
