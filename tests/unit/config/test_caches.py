"""The settings of the three caches: types, timeouts, log levels, redirection, and one file each."""

import os
from pathlib import Path

import pytest

from tlsmgr.config.caches import (
    CachePlace,
    CacheSettings,
    cache_places,
    cache_settings,
    session_timeout,
)
from tlsmgr.config.load import Configuration, load
from tlsmgr.config.redirect import WritableDir
from tlsmgr.log import Fatal

ERROR_FORM = 'open dictionary: expecting "type:name" form instead of '


def configured(directory: Path, **values: str) -> Configuration:
    """A configuration (`__` in a name stands for `_tls_session_cache_`)."""
    options = [
        f"{name.replace('__', '_tls_session_cache_')}={value}" for name, value in values.items()
    ]
    return load(str(directory), pytest.fail, overrides=options, optional=True)


def settings_of(directory: Path, **values: str) -> tuple[tuple[CacheSettings, ...], list[str]]:
    """The settings with some parameters set, and the warnings."""
    warnings: list[str] = []
    return cache_settings(configured(directory, **values), warnings.append), warnings


def place_of(
    directory: Path, owner: int | None = None, **values: str
) -> tuple[CachePlace, list[str]]:
    """Where the only cache is that has a table, and the warnings."""
    warnings: list[str] = []
    conf = configured(directory, **values)
    settings = cache_settings(conf, pytest.fail)
    writable = WritableDir("postfix", os.geteuid() if owner is None else owner, "/data")
    (place,) = cache_places(conf, settings, writable, warnings.append)
    return place, warnings


def test_without_a_database_there_is_no_cache_but_a_timeout(tmp_path: Path) -> None:
    caches, warnings = settings_of(tmp_path)
    assert [cache.cache_type for cache in caches] == ["smtpd", "smtp", "lmtp"]
    assert warnings == []
    for cache in caches:
        assert not cache.cachable
        assert cache == CacheSettings(cache.cache_type, "", 3600, 134217728, 0, False)


def test_all_that_is_said_about_one_cache(tmp_path: Path) -> None:
    caches, warnings = settings_of(
        tmp_path,
        smtp__database=f"btree:{tmp_path}/smtp_scache",
        smtp__timeout="2h",
        smtp__size_limit="2000000",
        smtp__entry_limit="1000",
        smtp_tls_loglevel="2",
    )
    assert warnings == []
    assert caches[1] == CacheSettings(
        cache_type="smtp",
        table=f"btree:{tmp_path}/smtp_scache",
        timeout=7200,
        size_limit=2000000,
        entry_limit=1000,
        log_activity=True,
    )
    assert caches[1].cachable


def test_tickets_are_used_once_in_the_caches_of_clients(tmp_path: Path) -> None:
    (tmp_path / "tlsmgr.cf").write_text("tlsmgr_single_use_tickets = strict\n")
    caches, warnings = settings_of(
        tmp_path,
        smtpd__database=f"btree:{tmp_path}/smtpd_scache",
        smtp__database=f"btree:{tmp_path}/smtp_scache",
        lmtp__database=f"memcache:{tmp_path}/lmtp.cf",
    )
    assert [cache.single_use for cache in caches] == ["no", "strict", "no"]
    effect = "tlsmgr_single_use_tickets has no effect on the lmtp cache"
    assert warnings == [f"{effect}, memcache:{tmp_path}/lmtp.cf"]


@pytest.mark.parametrize("kind", ["btree", "hash", "lmdb", "dbm", "sdbm"])
def test_types_that_select_our_store(tmp_path: Path, kind: str) -> None:
    place, _ = place_of(tmp_path, lmtp__database=f"{kind}:{tmp_path}/x")
    assert place == CachePlace(f"{kind}:{tmp_path}/x", f"{tmp_path}/x.sessions", None)


def test_the_type_of_postfix_3_11_selects_our_store(tmp_path: Path) -> None:
    place, _ = place_of(tmp_path, smtp__database=f"$default_cache_db_type:{tmp_path}/x")
    assert place == CachePlace(f"lmdb:{tmp_path}/x", f"{tmp_path}/x.sessions", None)


def test_a_database_without_a_type_has_the_default_one(tmp_path: Path) -> None:
    place, _ = place_of(tmp_path, smtp__database=f"{tmp_path}/x")
    assert place.database == f"hash:{tmp_path}/x"


def test_a_table_in_memory_is_a_file_in_the_data_directory(tmp_path: Path) -> None:
    place, warnings = place_of(tmp_path, smtp__database="internal:some/x")
    assert place == CachePlace("internal:/data/x", "/data/x.sessions", None)
    assert warnings == []


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ("proxy:btree:/x", "unsupported dictionary type: proxy"),
        ("BTREE:/x", "unsupported dictionary type: BTREE"),
        ("static:x", "unsupported dictionary type: static"),
        ("cdb:{}/x", "unsupported dictionary type: cdb"),
        (":/x", ERROR_FORM + '":/x"'),
        ("internal:", ERROR_FORM + '"internal:"'),
        ("foo:", ERROR_FORM + '"foo:"'),
    ],
)
def test_a_table_that_cannot_serve_has_an_error_and_no_file(
    tmp_path: Path, table: str, error: str
) -> None:
    table = table.format(tmp_path)
    place, warnings = place_of(tmp_path, smtp__database=table)
    assert (place.path, place.error) == (None, error)
    assert settings_of(tmp_path, smtp__database=table)[0][1].cachable
    assert warnings == []
    with pytest.raises(Fatal) as caught:
        place_of(tmp_path, smtp__database=table, daemon_table_open_error_is_fatal="yes")
    assert caught.value.text == error


def test_a_table_in_the_directory_of_another_user_is_redirected(tmp_path: Path) -> None:
    table = f"btree:{tmp_path}/scache"
    place, warnings = place_of(tmp_path, owner=os.geteuid() + 1, smtp__database=table)
    assert place == CachePlace("btree:/data/scache", "/data/scache.sessions", None)
    assert warnings == [
        f"request to update table {table} in non-postfix directory {tmp_path}",
        "redirecting the request to postfix-owned data_directory /data",
    ]


def test_a_table_of_an_unsupported_type_is_redirected_all_the_same(tmp_path: Path) -> None:
    place, warnings = place_of(tmp_path, owner=os.geteuid() + 1, smtp__database=f"cdb:{tmp_path}/x")
    assert place == CachePlace("cdb:/data/x", None, "unsupported dictionary type: cdb")
    assert len(warnings) == 2


def test_a_table_without_a_name_is_named_after_its_directory(tmp_path: Path) -> None:
    place, _ = place_of(tmp_path, owner=os.geteuid() + 1, smtp__database="btree:")
    assert (place.database, place.error) == ("btree:/data/.", None)


@pytest.mark.parametrize(
    ("seconds", "used"), [(0, 0), (1, 120), (119, 120), (120, 120), (121, 121), (8640000, 8640000)]
)
def test_a_life_of_a_session_is_two_minutes_or_nothing(seconds: int, used: int) -> None:
    assert session_timeout(seconds) == used


def test_a_timeout_of_zero_turns_a_cache_off(tmp_path: Path) -> None:
    caches, warnings = settings_of(
        tmp_path,
        smtp__database=f"btree:{tmp_path}/x",
        smtp__timeout="0",
        lmtp__database="foo:x",
        lmtp__timeout="0",
        lmtp_tls_loglevel="nonsense",
    )
    for cache in caches[1:]:
        assert not cache.cachable
        assert cache.timeout == 0
    assert warnings == []


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        (("btree:{}/x", "btree:{}/x", ""), "btree:{}/x for smtpd and smtp"),
        (("", "btree:{}/x", "btree:{}/x"), "btree:{}/x for smtp and lmtp"),
        (("btree:{}/x", "btree:{}/y", "btree:{}/x"), "btree:{}/x for smtpd and lmtp"),
        (("foo:x", "", "foo:x"), "foo:x for smtpd and lmtp"),
        (("btree:{}/x", "lmdb:{}/x", ""), "lmdb:{}/x for smtpd and smtp"),
        (("btree:{}/x", "", "btree:{}/./x"), "btree:{}/./x for smtpd and lmtp"),
        (("{}/x", "hash:{}/x", ""), "hash:{}/x for smtpd and smtp"),
    ],
)
def test_one_database_for_two_caches_is_fatal(
    tmp_path: Path, tables: tuple[str, str, str], text: str
) -> None:
    smtpd, smtp, lmtp = (table.format(tmp_path) for table in tables)
    with pytest.raises(Fatal) as caught:
        place_of(tmp_path, smtpd__database=smtpd, smtp__database=smtp, lmtp__database=lmtp)
    assert caught.value.text == f"do not use the same TLS cache file {text.format(tmp_path)}"


def test_a_cache_that_is_off_may_share_its_database(tmp_path: Path) -> None:
    table = f"btree:{tmp_path}/x"
    caches, _ = settings_of(tmp_path, smtp__database=table, lmtp__database=table, lmtp__timeout="0")
    assert [cache.cachable for cache in caches] == [False, True, False]


@pytest.mark.parametrize(
    ("level", "logs"),
    [
        ("", False),
        ("0", False),
        ("1", False),
        ("2", True),
        ("3", True),
        ("9", True),
        ("routine", False),
        ("Debug", True),
        ("summary, cache", True),
        ("summary\tverbose", False),
        ("trace,ssl-debug,ssl-session-packet-dump", False),
        ("ssl-expert", True),
        (" , ", False),
    ],
)
def test_log_levels(tmp_path: Path, level: str, logs: bool) -> None:
    caches, warnings = settings_of(
        tmp_path, smtp__database=f"btree:{tmp_path}/x", smtp_tls_loglevel=level
    )
    assert caches[1].log_activity is logs
    assert warnings == []


@pytest.mark.parametrize(("level", "word"), [("abc", "abc"), ("cache,10", "10"), ("2 x y", "x")])
def test_an_unknown_log_level_counts_as_none(tmp_path: Path, level: str, word: str) -> None:
    caches, warnings = settings_of(
        tmp_path, smtp__database=f"btree:{tmp_path}/x", smtp_tls_loglevel=level
    )
    assert not caches[1].log_activity
    assert warnings == [f'unknown smtp_tls_loglevel value "{word}" in "{level}"']
