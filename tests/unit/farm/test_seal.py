"""Sealed sessions: the format to the byte, days and clocks, and all that must not be accepted."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from support.farm_secret import DAY, EXAMPLE_DATE, EXAMPLE_KEY, at, day

from tlsmgr.farm.codec import LARGEST_VALUE, Found, Item
from tlsmgr.farm.day_secrets import DaySecrets
from tlsmgr.farm.seal import OVERHEAD, SALT_BYTES, Keyring, SealedTable, first_day
from tlsmgr.farm.secret import Secret
from tlsmgr.shm import SharedMemory

FIRST = day(EXAMPLE_DATE)
NOON = at(f"{EXAMPLE_DATE} 12:00:00") + DAY
T = 3600
SALT = bytes(range(SALT_BYTES))
ID, SESSION = b"smtp&mx.example.com&", b"secret session" * 100


def secrets(first: int = FIRST, key: bytes = EXAMPLE_KEY) -> DaySecrets:
    return DaySecrets(SharedMemory(65536), [Secret(FIRST, key)], first)


def table(
    salt: bytes = SALT, cache_type: str = "smtp", timeout: int = T, key: bytes = EXAMPLE_KEY
) -> SealedTable:
    return SealedTable(cache_type, timeout, Keyring(secrets(key=key).of, salt))


def sealed(by: SealedTable, now: int = NOON, session: bytes = SESSION) -> Item:
    item = by.encode(ID, session, now)
    assert item is not None
    return item


def hkdf(key: bytes, info: bytes) -> bytes:
    return HKDFExpand(hashes.SHA256(), 32, info).derive(key)


def test_the_format_by_another_hand() -> None:
    """Derived with the functions of another library, step by step."""
    item = sealed(table())
    secret = hkdf(EXAMPLE_KEY, b"tlsmgr farm v1 next day")  # NOON is of the day after FIRST
    digest = hashlib.blake2b(ID, digest_size=16, key=hkdf(secret, b"tlsmgr farm v1 id")).hexdigest()
    assert item.key == b"tlsmgr:1:smtp:" + digest.encode()
    assert item.life == T
    head, nonce, body = item.value[:21], item.value[21:33], item.value[33:]
    assert head == b"\1" + (NOON // DAY).to_bytes(4, "big") + SALT
    cipher = AESGCM(hkdf(secret, b"tlsmgr farm v1 session" + SALT))
    assert cipher.decrypt(nonce, body, item.key) == struct.pack(">q", NOON) + SESSION
    assert len(item.value) == len(SESSION) + OVERHEAD


def test_another_process_opens_it() -> None:
    item = sealed(table())
    other = table(salt=bytes(SALT_BYTES))
    assert other.keys(ID, NOON) == (item.key,)
    assert other.decode(item.key, item.value, NOON + T) == Found(NOON, SESSION)


def test_nothing_readable() -> None:
    item = sealed(table())
    assert b"example" not in item.key + item.value
    assert b"secret" not in item.key + item.value
    assert "secret" not in repr(item) + repr(Found(NOON, SESSION))


def test_each_value_has_a_nonce_of_its_own() -> None:
    mine = table()
    values = [sealed(mine).value for _ in range(100)]
    assert len({value[21:33] for value in values}) == 100
    assert len({sealed(table(salt=bytes([i]) * 16)).value[33:] for i in range(10)}) == 10


@pytest.mark.parametrize("position", [0, 4, 5, 20, 21, 32, 33, -1])
def test_one_changed_bit_is_not_found(position: int) -> None:
    item = sealed(table())
    value = bytearray(item.value)
    value[position] ^= 1
    assert table().decode(item.key, bytes(value), NOON) is None


def test_rubbish_is_not_found() -> None:
    item = sealed(table())
    for value in (b"", b"\1", item.value[:-1], item.value + b"x", item.value[: OVERHEAD - 1]):
        assert table().decode(item.key, value, NOON) is None


def test_not_under_another_key_type_or_secret() -> None:
    item = sealed(table())
    other_key = table().keys(b"other id", NOON)[0]
    assert table().decode(other_key, item.value, NOON) is None
    assert table(cache_type="lmtp").keys(ID, NOON) != (item.key,)
    foreign = table(key=bytes(range(32)))
    assert foreign.keys(ID, NOON) != (item.key,)
    assert foreign.decode(item.key, item.value, NOON) is None


def test_a_far_day_is_refused_at_once() -> None:
    """An engine that is hostile could else have each lookup step through millions of days."""
    item = sealed(table())
    value = b"\1" + (2**32 - 1).to_bytes(4, "big") + item.value[5:]
    assert table().decode(item.key, value, NOON) is None


@pytest.mark.parametrize(("age", "found"), [(-300, True), (-301, False), (T, True), (T + 1, False)])
def test_time_of_saving(age: int, found: bool) -> None:
    """Expired as in a local cache; a clock ahead by five minutes is believed."""
    item = sealed(table())
    assert (table().decode(item.key, item.value, NOON + age) is not None) == found


MIDNIGHT = at(f"{EXAMPLE_DATE} 00:00:00") + 2 * DAY
CLOCKS = [
    (saved, asked)
    for saved in (-DAY // 2, -T, -300, -5, -1, 0, 1, 5)
    for asked in (-5, -1, 0, 1, 5, 300, T)
    if -5 <= asked - saved <= T
]


@pytest.mark.parametrize(("saved", "asked"), CLOCKS)
def test_around_midnight(saved: int, asked: int) -> None:
    """Whatever the clocks of two hosts are, one looks where the other one has stored."""
    item = sealed(table(), MIDNIGHT + saved)
    other = table(salt=bytes(SALT_BYTES))
    keys = other.keys(ID, MIDNIGHT + asked)
    assert item.key in keys
    assert len(keys) <= 2
    assert other.decode(item.key, item.value, MIDNIGHT + asked) == Found(MIDNIGHT + saved, SESSION)


def test_one_key_in_the_middle_of_the_day() -> None:
    assert len(table().keys(ID, NOON)) == 1
    assert len(table(timeout=DAY).keys(ID, NOON)) == 2
    assert len(table(timeout=DAY).keys(ID, MIDNIGHT - 1)) == 3


def test_a_day_without_a_secret() -> None:
    late = SealedTable("smtp", DAY, Keyring(secrets(NOON // DAY).of, SALT))
    assert len(late.keys(ID, NOON)) == 1
    assert late.keys(ID, NOON - 2 * DAY) == ()
    assert late.encode(ID, SESSION, NOON - 2 * DAY) is None


def test_the_first_day_is_early_enough() -> None:
    for timeout, days in ((T, 0), (DAY, 1), (100 * DAY, 1)):
        assert first_day(NOON, timeout) == NOON // DAY - days
        assert first_day(MIDNIGHT, timeout) == MIDNIGHT // DAY - 1 - (timeout >= DAY)


def test_a_session_that_is_too_large_is_not_shared() -> None:
    assert len(sealed(table(), session=bytes(LARGEST_VALUE - OVERHEAD)).value) == LARGEST_VALUE
    assert table().encode(ID, bytes(LARGEST_VALUE - OVERHEAD + 1), NOON) is None
