"""A session cache: expiry to the second, any id, any size, limits, and no session on the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from cache_files import MIB, CacheFiles, end_of_child, held_open, in_child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tlsmgr.sessions.cache import Change, SessionCache
from tlsmgr.sessions.seal import Entry, Seal
from tlsmgr.sessions.store import Record, Store, remove

NOW = 1_795_220_454
T = 120


class MakeFiles(Protocol):
    def __call__(
        self,
        *,
        timeout: int = T,
        size_limit: int = 16 * MIB,
        entry_limit: int = 0,
        logging: bool = False,
        encrypted: bool = True,
    ) -> CacheFiles: ...


@pytest.fixture
def make_files(tmp_path: Path) -> Iterator[MakeFiles]:
    made: list[CacheFiles] = []

    def make(
        *,
        timeout: int = T,
        size_limit: int = 16 * MIB,
        entry_limit: int = 0,
        logging: bool = False,
        encrypted: bool = True,
    ) -> CacheFiles:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(
            CacheFiles(
                directory,
                timeout=timeout,
                size_limit=size_limit,
                entry_limit=entry_limit,
                logging=logging,
                encrypted=encrypted,
            )
        )
        return made[-1]

    yield make
    for files in made:
        files.remove()


def update(cache: SessionCache, *entries: tuple[bytes, bytes], now: int = NOW) -> None:
    """Updates as one batch; every one is done, whatever happens."""
    changes = [Change(cache_id, session) for cache_id, session in entries]
    assert cache.apply(changes, now) == [True] * len(changes)


def delete(cache: SessionCache, cache_id: bytes, now: int = NOW) -> bool:
    (done,) = cache.apply([Change(cache_id, None)], now)
    return done


def lookup(cache: SessionCache, cache_id: bytes, now: int = NOW) -> bytes | None:
    """A lookup in a turn of its own."""
    found = cache.lookup(cache_id, now)
    cache.end_reading()
    return found


# ---------------------------------------------------------------------------------------- requests


def test_life_of_an_entry(make_files: MakeFiles) -> None:
    cache = make_files().cache()
    assert lookup(cache, b"id") is None
    assert not delete(cache, b"id")
    update(cache, (b"id", b"hello"))
    assert lookup(cache, b"id") == b"hello"
    update(cache, (b"id", b"other"))
    assert lookup(cache, b"id") == b"other"
    assert cache.size()[0] == 1
    assert delete(cache, b"id")
    assert not delete(cache, b"id")
    assert lookup(cache, b"id") is None
    assert cache.size()[0] == 0


def test_a_batch_is_carried_out_in_order(make_files: MakeFiles) -> None:
    cache = make_files().cache()
    changes = [
        Change(b"a", b"1"),
        Change(b"a", None),
        Change(b"a", None),
        Change(b"b", b"1"),
        Change(b"b", b"2"),
        Change(b"c", None),
        Change(b"c", b"3"),
    ]
    assert cache.apply(changes, NOW) == [True, True, False, True, True, False, True]
    assert [lookup(cache, cache_id) for cache_id in (b"a", b"b", b"c")] == [None, b"2", b"3"]
    assert cache.apply([], NOW) == []


@pytest.mark.parametrize(
    "cache_id",
    [
        b"",
        b"smtp&[127.0.0.1]:10925&127.0.0.1&127.0.0.1&&62CFD41858",
        b"i" * 510,
        b"i" * 511,
        b"i" * 512,
        b"i" * 700,
        b"i" * 100_000,
        b"i" * 1_900_000,
        b"\xff\xfe\x80",
        b"\xc3",
        "münchen.example".encode(),
        bytes(range(1, 256)),
    ],
    ids=lambda cache_id: f"{len(cache_id)} bytes",
)
@pytest.mark.parametrize("encrypted", [True, False])
def test_any_id(make_files: MakeFiles, cache_id: bytes, encrypted: bool) -> None:
    files = make_files(encrypted=encrypted)

    def work() -> None:
        cache = files.cache()
        update(cache, (cache_id, b"session"), (cache_id + b"x", b"another"))
        assert lookup(cache, cache_id) == b"session"
        assert lookup(cache, cache_id + b"x") == b"another"
        assert delete(cache, cache_id)
        assert lookup(cache, cache_id) is None
        assert lookup(cache, cache_id + b"x") == b"another"

    in_child(work)


@pytest.mark.parametrize("size", [0, 1, 141, 1146, 4096, 65_000, 1_000_000])
@pytest.mark.parametrize("encrypted", [True, False])
def test_any_size(make_files: MakeFiles, size: int, encrypted: bool) -> None:
    cache = make_files(encrypted=encrypted).cache()
    session = os.urandom(size)
    update(cache, (b"id", session))
    assert lookup(cache, b"id") == session


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"", b"a", b"b", b"c" * 600, b"\xff"]),
            st.one_of(st.none(), st.binary(max_size=20)),
        ),
        max_size=30,
    )
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_it_is_a_dictionary(
    make_files: MakeFiles, history: list[tuple[bytes, bytes | None]]
) -> None:
    files = make_files()
    cache = files.cache()
    model: dict[bytes, bytes] = {}
    for cache_id, session in history:
        if session is None:
            assert delete(cache, cache_id) == (model.pop(cache_id, None) is not None)
        else:
            update(cache, (cache_id, session))
            model[cache_id] = session
        assert cache.size()[0] == len(model)
        for known in {one for one, _ in history}:
            assert lookup(cache, known) == model.get(known)
    files.close()


# ------------------------------------------------------------------------------------------ expiry


def test_expiry_to_the_second(make_files: MakeFiles) -> None:
    cache = make_files(timeout=T).cache()
    update(cache, (b"id", b"session"))
    assert lookup(cache, b"id", NOW + T) == b"session"
    assert cache.expired == []
    assert lookup(cache, b"id", NOW + T + 1) is None


def test_a_lookup_that_finds_an_expired_entry_has_it_deleted(make_files: MakeFiles) -> None:
    cache = make_files(timeout=T).cache()
    update(cache, (b"old", b"session"))
    update(cache, (b"new", b"session"), now=NOW + T)
    assert lookup(cache, b"old", NOW + T + 1) is None
    assert cache.expired == [b"old"]
    assert cache.size()[0] == 2
    assert cache.apply([], NOW + T + 1) == []
    assert cache.expired == []
    assert cache.size()[0] == 1
    assert not delete(cache, b"old", NOW + T + 1)
    assert lookup(cache, b"new", NOW + T + 1) == b"session"


def test_what_was_refreshed_meanwhile_is_not_deleted(make_files: MakeFiles) -> None:
    """The lookup decides without a lock; the transaction that deletes looks again."""
    cache = make_files(timeout=T).cache()
    update(cache, (b"id", b"old"))
    later = NOW + T + 1
    cache.lookup(b"id", later)
    update(cache, (b"id", b"new"), now=later)
    assert lookup(cache, b"id", later) == b"new"
    cache.lookup(b"id", later + T + 1)
    assert cache.expired == [b"id"]
    cache.apply([], later + T)  # the clock was set back by a second
    assert lookup(cache, b"id", later + T) == b"new"


def test_clock_steps(make_files: MakeFiles) -> None:
    cache = make_files(timeout=T).cache()
    update(cache, (b"id", b"session"))
    for now in (NOW - 10 * T, 0, NOW, NOW + T, NOW - 1):
        assert lookup(cache, b"id", now) == b"session", "a stamp in the future never expires early"
    update(cache, (b"id", b"again"), now=NOW - 10 * T)  # back: the stamp is that of its clock
    assert lookup(cache, b"id", NOW - 9 * T) == b"again"
    assert lookup(cache, b"id", NOW - 9 * T + 1) is None
    update(cache, (b"forth", b"session"), now=NOW + 10_000)
    assert lookup(cache, b"forth", NOW) == b"session"
    assert lookup(cache, b"forth", NOW + 10_000 + T) == b"session"
    assert lookup(cache, b"forth", NOW + 10_001 + T) is None


# ---------------------------------------------------------------------------------------- secrets


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
    files = make_files(encrypted=False)
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
    record = Seal(os.urandom(32), digest_key).close(bytes(6), Entry(NOW, b"id", b"session"))
    assert Seal(os.urandom(32), digest_key).open(bytes(6), record) is None


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
    with store.writing() as batch:
        batch.remove(a.serial, None)
        batch.remove(b.serial, None)
        for record in (Record(a.serial, b.data), Record(b.serial, a.data)):
            assert batch._txn.put(record.serial, record.data, db=batch._records)
    cache = files.cache()
    assert lookup(cache, b"a") is None
    assert lookup(cache, b"b") is None

    with files.store().writing() as batch:
        for record, cache_id in ((a, b"b"), (b, b"a")):
            batch._txn.put(record.serial, record.data, db=batch._records)
            batch._txn.put(seal.digest(cache_id), record.serial, db=batch._serials)
    cache = files.cache()
    assert lookup(cache, b"a") is None
    assert lookup(cache, b"b") is None


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


# ----------------------------------------------------------------------------------------- limits


def test_the_entry_limit_lets_the_oldest_go(make_files: MakeFiles) -> None:
    cache = make_files(entry_limit=10).cache()
    for number in range(100):
        update(cache, (b"%d" % number, b"session"))
        assert cache.size()[0] == min(number + 1, 10)
    assert [n for n in range(100) if lookup(cache, b"%d" % n)] == list(range(90, 100))


def test_refreshed_entries_survive(make_files: MakeFiles) -> None:
    cache = make_files(entry_limit=10).cache()
    for number in range(100):
        update(cache, (b"%d" % number, b"session"), (b"kept", b"session %d" % number))
    assert lookup(cache, b"kept") == b"session 99"
    assert [n for n in range(100) if lookup(cache, b"%d" % n)] == list(range(91, 100))


def test_a_batch_over_the_limit(make_files: MakeFiles) -> None:
    cache = make_files(entry_limit=3).cache()
    update(cache, *((b"%d" % number, b"session") for number in range(50)))
    assert [n for n in range(50) if lookup(cache, b"%d" % n)] == [47, 48, 49]


@pytest.mark.parametrize("size", [10, 1200, 9000, 200_000])
def test_the_size_limit_lets_the_oldest_go(make_files: MakeFiles, size: int) -> None:
    files = make_files(size_limit=MIB)
    cache = files.cache()
    count = max(3 * MIB // size, 20) if size > 10 else 20_000
    for first in range(0, count, 10):
        update(cache, *((b"%d" % n, bytes(size)) for n in range(first, first + 10)))
        assert cache.size()[1] <= MIB
    kept = [n for n in range(count) if lookup(cache, b"%d" % n) is not None]
    assert kept == list(range(kept[0], count)), "the oldest went, and nothing else"
    assert len(kept) * size > MIB // 4 or size == 10
    assert files.path.stat().st_size < 3 * MIB + 3 * 10 * size, "twice the limit, and a batch"


def test_a_session_over_the_limit_is_no_failure(make_files: MakeFiles) -> None:
    cache = make_files(size_limit=MIB).cache()
    update(cache, (b"large", bytes(1_500_000)))
    update(cache, (b"small", b"session"))
    assert lookup(cache, b"small") == b"session"
    assert cache.size()[1] <= MIB


def test_a_large_session_may_take_the_place_of_many_small_ones(make_files: MakeFiles) -> None:
    """Each that goes costs copies of pages: all of them together are more than the batch has."""
    files = make_files(size_limit=4 * MIB)

    def work() -> tuple[int, int]:
        cache = files.cache()
        for first in range(0, 50_000, 50):
            update(cache, *((b"%d" % number, b"") for number in range(first, first + 50)))
        before, used = cache.size()
        assert before > 30_000
        assert used <= 4 * MIB
        update(cache, (b"large", bytes(1_500_000)))
        assert lookup(cache, b"large") == bytes(1_500_000)
        assert lookup(cache, b"49999") == b""
        after, used = cache.size()
        assert used <= 4 * MIB
        return before, after

    before, after = in_child(work)
    assert 0.4 * before < after < 0.8 * before
    assert files.path.stat().st_size < 12 * MIB


def test_a_full_map_is_no_failure(make_files: MakeFiles) -> None:
    """A reader that was stopped pins all pages; when it is gone there is room again."""
    files = make_files(size_limit=MIB)
    with held_open(files, reading=True):
        cache = files.cache()
        count = files.file.map_size // 4096
        for number in range(count):
            update(cache, (b"%d" % number, bytes(1200)))
        assert lookup(cache, b"%d" % (count - 1)) is None, "the map is full by now"
        assert not files.shared.take_damage()
    cache = files.cache()  # the only user: it makes the table of readers anew
    update(cache, (b"last", b"session"))
    assert lookup(cache, b"last") == b"session"
    assert cache.size()[1] <= MIB


# -------------------------------------------------------------------------------------- processes


def test_what_one_process_stored_another_finds(make_files: MakeFiles) -> None:
    files = make_files()
    with held_open(files):
        for number in range(5):
            in_child(lambda: update(files.cache(), (b"%d" % number, b"session")))  # noqa: B023
        for number in range(5):
            assert in_child(lambda: lookup(files.cache(), b"%d" % number)) == b"session"  # noqa: B023


# ------------------------------------------------------------------------------------ broken files


def check_that_it_serves_without(cache: SessionCache) -> None:
    """Updates are accepted and lookups find nothing."""
    update(cache, (b"a", b"session"), (b"b", b"session"))
    assert lookup(cache, b"a") is None
    assert not delete(cache, b"a")
    assert cache.apply([Change(b"a", b"s"), Change(b"a", None)], NOW) == [True, False]


def test_without_a_file(make_files: MakeFiles) -> None:
    files = make_files()
    cache = SessionCache(files.rules, files.shared, None)
    check_that_it_serves_without(cache)
    assert cache.size() == (0, 0)
    cache.close()


def test_a_file_that_was_removed_serves_its_users(make_files: MakeFiles) -> None:
    files = make_files()
    cache = files.cache()
    remove(files.file)
    update(cache, (b"id", b"session"))
    assert lookup(cache, b"id") == b"session"


def test_garbage_in_the_file_is_a_miss_and_a_word_to_the_parent(
    make_files: MakeFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    files = make_files()

    def meet_garbage() -> tuple[int, bool]:
        cache = files.cache()
        update(cache, *((b"%d" % number, bytes(1200)) for number in range(3000)))
        size = files.path.stat().st_size
        with open(files.path, "r+b") as file:
            file.seek(0)
            file.write(os.urandom(size))
        found = [lookup(cache, b"%d" % number) for number in range(3000)]
        update(cache, (b"id", b"session"))
        return sum(one is not None for one in found), files.shared.take_damage()

    assert in_child(meet_garbage) == (0, True)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, "one warning in ten minutes"
    assert "warning: smtp TLS session cache: " in lines[0]


@pytest.mark.parametrize("part", [0.0, 0.001, 0.002, 0.3, 0.5, 0.7, 0.999])
def test_a_file_that_was_cut_can_not_be_opened(make_files: MakeFiles, part: float) -> None:
    """Else it would be met later, by whoever reads beyond the cut: as an assertion of LMDB's."""
    files = make_files()
    update(files.cache(), *((b"%d" % number, bytes(1200)) for number in range(3000)))
    files.close()
    os.truncate(files.path, int(part * files.path.stat().st_size) // 4096 * 4096)

    def open_it() -> str:
        try:
            Store(files.file)
        except Exception as error:
            return type(error).__name__
        return "was opened"

    assert end_of_child(open_it) == ("StoreError", 0)


# -------------------------------------------------------------------------------------- log lines


def test_the_log_at_level_two(make_files: MakeFiles, capfd: pytest.CaptureFixture[str]) -> None:
    cache = make_files(logging=True).cache()
    lookup(cache, b"id\n\xff")
    update(cache, (b"id\n\xff", b"secret"))
    lookup(cache, b"id\n\xff")
    delete(cache, b"id\n\xff")
    text = capfd.readouterr().err
    lines = [re.sub(r"^\S+: ", "", line) for line in text.splitlines()]
    assert lines == [
        "lookup smtp session id=id??",
        "put smtp session id=id?? [data 6 bytes]",
        f"write smtp TLS cache entry id??: time={NOW} [data 6 bytes]",
        "lookup smtp session id=id??",
        f"read smtp TLS cache entry id??: time={NOW} [data 6 bytes]",
        "delete smtp session id=id??",
    ]


def test_no_log_without_it(make_files: MakeFiles, capfd: pytest.CaptureFixture[str]) -> None:
    cache = make_files().cache()
    update(cache, (b"id", b"secret"))
    lookup(cache, b"id", NOW + 2 * T)
    cache.apply([], NOW + 2 * T)
    delete(cache, b"id")
    assert capfd.readouterr().err == ""


def test_no_secret_in_a_repr(make_files: MakeFiles) -> None:
    assert "secret" not in repr(Change(b"id", b"secret"))
    assert "secret" not in repr(Record(b"serial", b"secret"))
