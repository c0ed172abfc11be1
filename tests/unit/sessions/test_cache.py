"""A session cache: any id, any size, expiry to the second, and what is said of it."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cache_files import OtherWriter, held_open, in_child
from support.cache_fixtures import NOW, MakeFiles, T, delete, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.cache import Change
from tlsmgr.sessions.store import Record
from tlsmgr.stats import CACHE_INDEX

DAY = 86400

# ----------------------------------------------------------------------------------------- requests


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


# ------------------------------------------------------------------------------------------- expiry


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
    for now in (NOW - 10 * T, NOW, NOW + T, NOW - 1, NOW - DAY):
        assert lookup(cache, b"id", now) == b"session", "a clock may be wrong by a day"
    update(cache, (b"id", b"again"), now=NOW - 10 * T)  # back: the stamp is that of its clock
    assert lookup(cache, b"id", NOW - 9 * T) == b"again"
    assert lookup(cache, b"id", NOW - 9 * T + 1) is None
    update(cache, (b"forth", b"session"), now=NOW + 10_000)
    assert lookup(cache, b"forth", NOW) == b"session"
    assert lookup(cache, b"forth", NOW + 10_000 + T) == b"session"
    assert lookup(cache, b"forth", NOW + 10_001 + T) is None


def test_a_session_of_the_far_future_is_expired(make_files: MakeFiles) -> None:
    """The clock was wrong when it was stored, or is now; either way it must not stay for ever."""
    cache = make_files(timeout=T).cache()
    update(cache, (b"id", b"session"))
    assert lookup(cache, b"id", NOW - DAY) == b"session"
    assert lookup(cache, b"id", NOW - DAY - 1) is None
    assert cache.expired == [b"id"]
    cache.apply([], NOW - DAY - 1)
    assert cache.size()[0] == 0


def test_an_expired_session_is_not_answered_when_it_can_not_be_deleted(
    make_files: MakeFiles,
) -> None:
    files = make_files(timeout=T)
    later = NOW + T + 1

    def look() -> list[bytes | None]:
        other = OtherWriter(files)
        cache = files.cache()
        other.stop()
        answers = []
        for _ in range(3):
            answers.append(lookup(cache, b"id", later))
            cache.apply([], later)
            assert cache.expired == []
        other.kill()
        return answers

    update(files.cache(), (b"id", b"session"))
    files.close()
    assert in_child(look) == [None, None, None]
    assert files.cache().size()[0] == 1


# ---------------------------------------------------------------------------------------- processes


def test_what_one_process_stored_another_finds(make_files: MakeFiles) -> None:
    files = make_files()
    with held_open(files):
        for number in range(5):
            in_child(lambda: update(files.cache(), (b"%d" % number, b"session")))  # noqa: B023
        for number in range(5):
            assert in_child(lambda: lookup(files.cache(), b"%d" % number)) == b"session"  # noqa: B023


# ---------------------------------------------------------------------------------------- log lines


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
    assert "secret" not in repr(Record(b"digest", b"serial", b"secret"))


def test_counts_of_a_cache(make_files: MakeFiles) -> None:
    """Each lookup is a hit or a miss; an expired session is a miss, and counts when it is gone."""
    cache = make_files(timeout=T).cache()
    update(cache, (b"one", b"session"), (b"two", b"session"))
    assert cache.lookup(b"one", NOW) == b"session"
    assert cache.lookup(b"none", NOW) is None
    assert cache.lookup(b"two", NOW + T + 1) is None
    cache.apply([Change(b"one", None), Change(b"none", None)], NOW + T + 1)
    counts = dict(zip(CACHE_INDEX, cache._counts))
    assert counts == {
        "hits": 1, "misses": 2, "updates": 2, "deletes": 2, "expired": 1, "evicted": 0,
    }  # fmt: skip


def test_evicted_sessions_are_counted(make_files: MakeFiles) -> None:
    cache = make_files(entry_limit=3).cache()
    for i in range(5):
        update(cache, (b"%d" % i, b"session"))
    assert cache._counts[CACHE_INDEX["evicted"]] == 2
