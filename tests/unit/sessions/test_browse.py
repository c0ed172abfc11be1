"""Listing and dropping sessions, while others are stored and deleted."""

from __future__ import annotations

import pytest
from support.cache_files import CacheFiles
from support.cache_fixtures import NOW, MakeFiles, T, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.browse import BATCH_RECORDS, SLICE_RECORDS, BrowsedCache
from tlsmgr.sessions.file import StoreError
from tlsmgr.sessions.seal import Entry
from tlsmgr.sessions.store import Record

MANY = 2 * SLICE_RECORDS + 50


def browsed(files: CacheFiles) -> BrowsedCache:
    """The cache as the control process has it; what this process had open before is closed."""
    files.close()
    return BrowsedCache(files.rules, files.shared, files.file)


def fill(files: CacheFiles, *ids: bytes, now: int = NOW) -> None:
    update(files.cache(), *((cache_id, b"session of " + cache_id) for cache_id in ids), now=now)


def listed(cache: BrowsedCache, match: bytes | None = None, now: int = NOW) -> list[Entry]:
    return [entry for entries in cache.entries(match, now) for entry in entries]


def ids_of(entries: list[Entry]) -> list[bytes]:
    return [entry.cache_id for entry in entries]


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("logging", [True, False])
def test_a_list(make_files: MakeFiles, encrypted: bool, logging: bool) -> None:
    """Ids are kept, whether they are logged or not."""
    files = make_files(encrypted=encrypted, logging=logging)
    fill(files, b"one", b"two\0\xff", b"")
    cache = browsed(files)
    assert listed(cache) == [
        Entry(NOW, cache_id, b"session of " + cache_id) for cache_id in (b"one", b"two\0\xff", b"")
    ]
    assert ids_of(listed(cache, b"o")) == [b"one", b"two\0\xff"]
    assert ids_of(listed(cache, b"\0\xff")) == [b"two\0\xff"]
    assert listed(cache, b"none") == []


def test_an_empty_cache(make_files: MakeFiles) -> None:
    cache = browsed(make_files())
    assert listed(cache) == []
    assert sum(cache.drop(None)) == 0


def test_a_list_is_made_in_slices(make_files: MakeFiles) -> None:
    files = make_files()
    names = [b"%d" % i for i in range(MANY)]
    fill(files, *names)
    slices = list(browsed(files).entries(None, NOW))
    assert [len(entries) for entries in slices] == [SLICE_RECORDS, SLICE_RECORDS, 50]
    assert ids_of([entry for entries in slices for entry in entries]) == names


def test_expired_sessions_are_not_listed(make_files: MakeFiles) -> None:
    files = make_files(timeout=T)
    fill(files, b"old", now=NOW - T)
    fill(files, b"new")
    assert ids_of(listed(browsed(files), now=NOW)) == [b"old", b"new"]
    assert ids_of(listed(browsed(files), now=NOW + 1)) == [b"new"]


def test_sessions_that_come_later_do_not_prolong_a_list(make_files: MakeFiles) -> None:
    """One that is stored again is met once, as it is then."""
    files = make_files(encrypted=False)
    names = [b"%d" % i for i in range(MANY)]
    fill(files, *names)
    cache = browsed(files)
    walk = cache.entries(None, NOW)
    first = next(walk)
    assert cache._store is not None
    with cache._store.writing() as batch:
        for name in (names[0], names[-1], *(b"late %d" % i for i in range(SLICE_RECORDS))):
            digest, serial = cache._seal.digest(name), batch.next_serial()
            data = cache._seal.encrypt(digest, serial, Entry(NOW, name, b"later"))
            batch.put(Record(digest, serial, data))
    rest = [entry for entries in walk for entry in entries]
    assert ids_of(first + rest)[:MANY] == names
    assert (first[0].session, rest[MANY - len(first) - 1].session) == (b"session of 0", b"later")
    assert len(rest) + len(first) < MANY + SLICE_RECORDS


def test_drop_what_matches(make_files: MakeFiles) -> None:
    files = make_files()
    fill(files, *(b"host%d.example" % i for i in range(30)))
    cache = browsed(files)
    assert sum(cache.drop(b"host1")) == 11
    assert sum(cache.drop(b"host1")) == 0
    assert len(listed(cache)) == 19
    assert lookup(files.cache(), b"host1.example") is None
    assert lookup(files.cache(), b"host2.example") == b"session of host2.example"


def test_drop_all_in_batches(make_files: MakeFiles) -> None:
    files = make_files()
    fill(files, *(b"%d" % i for i in range(MANY)))
    cache = browsed(files)
    counts = list(cache.drop(None))
    assert sum(counts) == MANY
    assert max(counts) <= BATCH_RECORDS
    assert listed(cache) == []
    assert files.cache().size()[0] == 0


def test_a_session_that_is_stored_again_meanwhile_is_dropped(make_files: MakeFiles) -> None:
    """Its record has another serial by then."""
    files = make_files()
    fill(files, *(b"%d" % i for i in range(MANY)))
    cache = browsed(files)
    with cache.opened() as store:
        slices = cache._slices(store, SLICE_RECORDS)
        records = next(slices)
        again = records[0]._replace(serial=bytes(8))
        assert cache._drop_some(store, [again]) == 1
        assert store.read(again.digest) is None


def test_the_file_is_open_while_somebody_walks(make_files: MakeFiles) -> None:
    """Several at once share it, as a process may open it once; one that is given up counts too."""
    files = make_files()
    fill(files, *(b"%d" % i for i in range(MANY)))
    cache = browsed(files)
    one, two = cache.entries(None, NOW), cache.drop(b"no such id")
    next(one), next(two)
    store = cache._store
    assert store is not None
    one.close()  # type: ignore[attr-defined]
    assert cache._store is store
    assert list(two)
    assert cache._store is None


def test_dropped_sessions_are_logged(
    make_files: MakeFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    files = make_files(logging=True)
    fill(files, b"one", b"two")
    capfd.readouterr()
    assert sum(browsed(files).drop(b"two")) == 1
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("]: ")[2] for line in lines] == ["delete smtp session id=two"]


def test_damage_is_reported(make_files: MakeFiles) -> None:
    files = make_files()
    fill(files, b"one")
    cache = browsed(files)
    files.path.unlink()
    with pytest.raises(StoreError):
        listed(cache)
    assert files.file.mark.is_damaged
    assert cache._store is None
