"""No session and no id on the disk, and no record in another's place."""

from __future__ import annotations

import os

import pytest
from support.cache_fixtures import NOW, MakeFiles, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.record import Entry, Seal
from tlsmgr.sessions.store import Record


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
    assert not any(raw[at : at + 8] in pieces for at in range(len(raw)))


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
    seal, digest = Seal(os.urandom(32), digest_key), bytes(16)
    data = seal.close(digest, bytes(6), Entry(NOW, b"id", b"session"))
    assert Seal(os.urandom(32), digest_key).open(digest, bytes(6), data) is None


@pytest.mark.parametrize("encrypted", [True, False])
def test_swapped_records_are_refused(make_files: MakeFiles, encrypted: bool) -> None:
    """Who can write the file can make sessions vanish, and not give one client another's."""
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


def test_a_serial_is_never_given_out_twice(make_files: MakeFiles) -> None:
    """It is the nonce. Not even when the batch it was meant for is dropped."""
    files = make_files()
    store = files.store()
    seen = set()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), store.writing():  # noqa: PT012
            seen.add(files.shared.next_serial())
            raise ZeroDivisionError
        with store.writing():
            seen.add(files.shared.next_serial())
    assert len(seen) == 6
