"""Sessions of a memcache: table in Postfix's form."""

from __future__ import annotations

import pytest

from tlsmgr.farm.codec import Found, Item
from tlsmgr.farm.memcache_table import MemcacheCodec

NOW = 1795220454


def codec(key_format: str = "%s", limit: int = 10240) -> MemcacheCodec:
    return MemcacheCodec(key_format, 120, 600, limit)


def test_the_form_is_that_of_postfix() -> None:
    """As recorded from Postfix 3.7.11 on a little-endian machine."""
    item = codec().encode(b"id", b"sess", NOW)
    assert item == Item(b"id", b"E6E3006B0000000073657373", 600)
    assert codec().decode(b"id", item.value, NOW) == Found(NOW, b"sess")
    assert codec().decode(b"id", item.value.lower(), NOW) == Found(NOW, b"sess")


@pytest.mark.parametrize(
    ("key_format", "key"), [("a:%s", b"a:Id&x"), ("%S", b"ID&X"), ("100%%%s%s", b"100%Id&xId&x")]
)
def test_key_format(key_format: str, key: bytes) -> None:
    assert codec(key_format).keys(b"Id&x", NOW) == (key,)


@pytest.mark.parametrize("cache_id", [b"", b"a b", b"a\nb", b"\x7f", b"x" * 251])
def test_keys_that_the_protocol_does_not_allow(cache_id: bytes) -> None:
    assert codec().keys(cache_id, NOW) == ()
    assert codec().encode(cache_id, b"session", NOW) is None


@pytest.mark.parametrize(("age", "is_found"), [(120, True), (121, False), (-86401, False)])
def test_expiry(age: int, is_found: bool) -> None:
    item = codec().encode(b"id", b"s", NOW)
    assert item is not None
    assert (codec().decode(b"id", item.value, NOW + age) is not None) == is_found


@pytest.mark.parametrize("value", [b"", b"E6E3006B", b"E6E3006B000000007", b"no hex", b"\xff" * 20])
def test_rubbish_is_not_found(value: bytes) -> None:
    assert codec().decode(b"id", value, NOW) is None


def test_the_size_limit() -> None:
    assert codec(limit=116).encode(b"id", bytes(50), NOW) is not None
    assert codec(limit=115).encode(b"id", bytes(50), NOW) is None
