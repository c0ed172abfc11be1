"""The file of a memcache: table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tlsmgr.config.memcache_cf import BadTable, MemcacheTable, load


def table(tmp_path: Path, text: str) -> tuple[MemcacheTable, list[str]]:
    path = tmp_path / "x.cf"
    path.write_text(text)
    os.utime(path, (0, 0))
    warnings: list[str] = []
    return load(str(path), warnings.append), warnings


def test_the_defaults_are_those_of_postfix(tmp_path: Path) -> None:
    assert table(tmp_path, "")[0] == MemcacheTable(
        host="localhost",
        port="11211",
        path="",
        key_format="%s",
        ttl=3600,
        flags=0,
        timeout=2,
        data_size_limit=10240,
    )


def test_all_that_counts(tmp_path: Path) -> None:
    found, warnings = table(
        tmp_path,
        "memcache = unix:/run/m\nkey_format = a%%:%S\nttl=60\nflags=3\n# comment\ntimeout = 5\n"
        "data_size_limit = 99\nline_size_limit = 1\nmax_try = 1\nretry_pause = 0\nother = x\n"
        "backup = btree:/y\n",
    )
    assert found == MemcacheTable("", "", "/run/m", "a%%:%S", 60, 3, 5, 99)
    assert warnings == [f"{tmp_path}/x.cf: backup is ignored: a session cache has no backup"]


@pytest.mark.parametrize(
    ("server", "place"),
    [
        ("inet:h.example:1", ("h.example", "1")),
        ("inet:[fc00::3]:memcache", ("fc00::3", "memcache")),
    ],
)
def test_servers(tmp_path: Path, server: str, place: tuple[str, str]) -> None:
    found, _ = table(tmp_path, f"memcache = {server}\n")
    assert (found.host, found.port) == place


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("memcache = h:1", 'bad memcache server "h:1"'),
        ("memcache = inet:h", 'bad memcache server "inet:h"'),
        ("memcache = unix:m", 'bad memcache server "unix:m"'),
        ("ttl = 1h", 'bad ttl "1h"'),
        ("timeout = 0", 'bad timeout "0"'),
        ("domain = x", "domain is not supported: a cache id is no mail address"),
        ("key_format = %u", 'key_format "%u": only %s, %S and %% are supported'),
        ("key_format = 100%", 'key_format "100%": only %s, %S and %% are supported'),
        ("nonsense", "/x.cf, line 1: missing '=' after attribute name: \"nonsense\""),
    ],
)
def test_mistakes(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(BadTable) as caught:
        table(tmp_path, f"{text}\n")
    assert str(caught.value).removeprefix(str(tmp_path)) == reason


def test_no_file() -> None:
    with pytest.raises(BadTable, match=r"^open /nowhere/x: No such file or directory$"):
        load("/nowhere/x", pytest.fail)
    with pytest.raises(BadTable, match=r"name a file$"):
        load("x", pytest.fail)
