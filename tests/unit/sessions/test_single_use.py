"""Sessions of TLS 1.3 that are used once: which one a lookup gives out, and what is left."""

from __future__ import annotations

import pytest
from support.cache_files import OtherWriter, in_child
from support.cache_fixtures import NOW, MakeFiles, T, delete, update
from support.cache_fixtures import make_files as make_files
from support.session_bytes import TLS_1_2, session

from tlsmgr.sessions.browse import BrowsedCache
from tlsmgr.sessions.cache import Change, SessionCache, Take
from tlsmgr.sessions.single_use import MOST_SESSIONS
from tlsmgr.stats import CACHE_INDEX, private_cache_row

ID = b"smtp&mx.example&192.0.2.1&&0123"
OLD = session("old", TLS_1_2)
BOTH = pytest.mark.parametrize("single_use", ["yes", "strict"])


def lookup(cache: SessionCache, now: int = NOW) -> bytes | None:
    """A lookup as a worker makes it, with the change that it may ask for."""
    found = cache.lookup(ID, now)
    cache.end_reading()
    if not isinstance(found, Take):
        return found
    (done,) = cache.apply([found], now)
    assert done == (found.session is not None)
    return found.session


def store(cache: SessionCache, *names: str, now: int = NOW) -> None:
    update(cache, *((ID, session(name)) for name in names), now=now)


def taken(cache: SessionCache, count: int, now: int = NOW) -> list[bytes | None]:
    return [lookup(cache, now) for _ in range(count)]


def sessions(*names: str) -> list[bytes | None]:
    return [session(name) for name in names]


def test_the_last_one_stays(make_files: MakeFiles) -> None:
    cache = make_files(single_use="yes").cache()
    store(cache, "1", "2", "3")
    assert taken(cache, 5) == sessions("3", "2", "1", "1", "1")
    store(cache, "4")
    assert taken(cache, 2) == sessions("4", "1")


def test_strict(make_files: MakeFiles) -> None:
    cache = make_files(single_use="strict").cache()
    store(cache, "1", "2")
    assert taken(cache, 3) == [*sessions("2", "1"), None]
    assert cache.size()[0] == 0


def test_without_it_one_session_is_kept_and_used_again(make_files: MakeFiles) -> None:
    cache = make_files().cache()
    store(cache, "1", "2")
    assert taken(cache, 2) == sessions("2", "2")
    assert cache.size()[0] == 1


@BOTH
def test_the_oldest_go_when_there_are_too_many(make_files: MakeFiles, single_use: str) -> None:
    cache = make_files(single_use=single_use).cache()
    names = [str(i) for i in range(MOST_SESSIONS + 2)]
    for name in names:
        store(cache, name)
    assert cache.size()[0] == MOST_SESSIONS
    assert taken(cache, MOST_SESSIONS) == sessions(*reversed(names[2:]))


@BOTH
def test_a_session_that_is_sent_twice_is_kept_once(make_files: MakeFiles, single_use: str) -> None:
    """Postfix sends an update again when the connection breaks before the reply."""
    cache = make_files(single_use=single_use).cache()
    store(cache, "1", "2")
    store(cache, "1")
    assert cache.size()[0] == 2
    assert taken(cache, 2) == sessions("1", "2")


@BOTH
def test_sessions_of_older_protocols_are_used_again(make_files: MakeFiles, single_use: str) -> None:
    cache = make_files(single_use=single_use).cache()
    update(cache, (ID, session("older", TLS_1_2)), (ID, OLD))
    assert taken(cache, 3) == [OLD] * 3
    assert cache.size()[0] == 1


@BOTH
def test_sessions_are_of_one_protocol(make_files: MakeFiles, single_use: str) -> None:
    """A server that changes its protocol cannot use those of before."""
    cache = make_files(single_use=single_use).cache()
    store(cache, "1", "2")
    update(cache, (ID, OLD))
    assert (lookup(cache), cache.size()[0]) == (OLD, 1)
    store(cache, "3")
    assert (cache.size()[0], lookup(cache)) == (1, session("3"))


@BOTH
def test_what_is_no_session_is_kept_as_ever(make_files: MakeFiles, single_use: str) -> None:
    cache = make_files(single_use=single_use).cache()
    update(cache, (ID, b"hello"), (ID, b"world"))
    assert taken(cache, 2) == [b"world"] * 2


@BOTH
def test_a_delete_removes_all_of_an_id(make_files: MakeFiles, single_use: str) -> None:
    cache = make_files(single_use=single_use).cache()
    store(cache, "1", "2", "3")
    update(cache, (b"other", session("1")))
    assert delete(cache, ID)
    assert not delete(cache, ID)
    assert (lookup(cache), cache.size()[0]) == (None, 1)


@BOTH
def test_expired_ones_are_not_given_out_and_go(make_files: MakeFiles, single_use: str) -> None:
    cache = make_files(single_use=single_use).cache()
    store(cache, "1")
    store(cache, "2", now=NOW + 10)
    assert lookup(cache, NOW + T + 5) == session("2")
    cache.apply([], NOW + T + 5)
    assert cache.size()[0] == 1
    assert lookup(cache, NOW + T + 11) is None
    cache.apply([], NOW + T + 11)
    assert cache.size()[0] == 0


@BOTH
def test_sessions_of_before_count_when_it_is_turned_on(
    make_files: MakeFiles, single_use: str
) -> None:
    files = make_files()
    store(files.cache(), "1", "2")
    files.rules = files.rules._replace(single_use=single_use)
    cache = files.cache()
    assert lookup(cache) == session("2")
    assert cache.size()[0] == (0 if single_use == "strict" else 1)


def test_the_last_session_is_found_when_it_is_turned_off(make_files: MakeFiles) -> None:
    files = make_files(single_use="yes")
    store(files.cache(), "1")
    files.rules = files.rules._replace(single_use="no")
    assert lookup(files.cache()) == session("1")


def test_changes_of_one_iteration_are_carried_out_in_order(make_files: MakeFiles) -> None:
    """Two clients that ask at the same time do not get the same session."""
    cache = make_files(single_use="strict").cache()
    store(cache, "1", "2")
    takes = [cache.lookup(ID, NOW) for _ in range(3)]
    changes = [take for take in takes if isinstance(take, Take)]
    assert len(changes) == 3
    assert cache.apply([*changes, Change(ID, session("3")), Take(ID)], NOW) == [
        True, True, False, True, True,
    ]  # fmt: skip
    assert [take.session for take in changes] == [session("2"), session("1"), None]


def test_processes_do_not_get_the_same_session(make_files: MakeFiles) -> None:
    files = make_files(single_use="strict")
    names = [str(i) for i in range(MOST_SESSIONS)]
    store(files.cache(), *names)
    files.close()
    results = [in_child(lambda: taken(files.cache(), 3)) for _ in range(3)]
    found = [each for result in results for each in result]
    assert sorted(filter(None, found)) == sorted(filter(None, sessions(*names)))
    assert found[-1] is None


def test_nothing_is_found_while_another_process_writes(make_files: MakeFiles) -> None:
    files = make_files(single_use="strict")
    store(files.cache(), "1")
    files.close()
    writer = OtherWriter(files)
    try:
        cache = files.cache()
        writer.stop()
        assert lookup(cache) is None
        writer.go_on()
        assert lookup(cache) == session("1")
    finally:
        writer.kill()


def test_counts(make_files: MakeFiles) -> None:
    """A session that is forgotten is no delete: nobody asked for that."""
    files, counts = make_files(single_use="strict"), private_cache_row()
    cache = files.cache()
    cache._counts = counts
    store(cache, "1", "2")
    taken(cache, 3)
    assert {name: counts[i] for name, i in CACHE_INDEX.items()} == {
        "hits": 2, "misses": 1, "updates": 2, "deletes": 0, "expired": 0, "evicted": 0,
    }  # fmt: skip


def test_an_operator_lists_and_drops_each(make_files: MakeFiles) -> None:
    files = make_files(single_use="strict")
    store(files.cache(), "1", "2")
    files.close()
    browsed = BrowsedCache(files.rules, files.shared, files.file)
    listed = [entry for entries in browsed.entries(b"mx.example", NOW) for entry in entries]
    assert [entry.cache_id for entry in listed] == [ID, ID]
    assert sorted(entry.session for entry in listed) == sorted([session("1"), session("2")])
    assert sum(browsed.drop(b"mx.example")) == 2
    assert lookup(files.cache()) is None


def test_log_lines(make_files: MakeFiles, capfd: pytest.CaptureFixture[str]) -> None:
    cache = make_files(single_use="strict", logging=True).cache()
    store(cache, "1")
    capfd.readouterr()
    lookup(cache)
    lines = capfd.readouterr().err.splitlines()
    name, size = ID.decode(), len(session("1"))
    assert [line.partition("]: ")[2] for line in lines] == [
        f"lookup smtp session id={name}",
        f"read smtp TLS cache entry {name}: time={NOW} [data {size} bytes]",
        f"delete smtp session id={name}",
    ]
