"""Records: what was sealed comes back, and nothing else does."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsmgr.sessions.seal import Entry, Nonces, Seal, SealKey, saved_time

DIGEST = bytes(range(16))
SERIAL, OTHER = (7).to_bytes(8, "big"), (8).to_bytes(8, "big")
ENTRY = Entry(1_795_220_454, b"smtp&example.com&", b"a session of some bytes" * 10)


def sealing(digest_key: bytes = bytes(32)) -> Seal:
    """One that encrypts, under a key of its own."""
    return Seal(SealKey(0, os.urandom(32)), digest_key, Nonces(1))


def seals() -> list[Seal]:
    """One that encrypts, and one that does not."""
    return [sealing(os.urandom(32)), Seal(None, os.urandom(32))]


@given(st.integers(0, 2**40 - 1), st.binary(max_size=800), st.binary(max_size=3000))
def test_there_and_back(saved: int, cache_id: bytes, session: bytes) -> None:
    entry = Entry(saved, cache_id, session)
    for seal in seals():
        record = seal.encrypt(DIGEST, SERIAL, entry)
        assert seal.decrypt(DIGEST, SERIAL, record) == entry
        assert saved_time(record) == saved


@pytest.mark.parametrize("length", [0, 1, 700, 100_000, 1_900_000])
def test_long_ids_and_sessions(length: int) -> None:
    entry = Entry(1, b"i" * length, b"s" * length)
    for seal in seals():
        assert seal.decrypt(DIGEST, SERIAL, seal.encrypt(DIGEST, SERIAL, entry)) == entry


def test_a_sealed_record_shows_time_and_length_and_nothing_else() -> None:
    seal = sealing()
    record = seal.encrypt(DIGEST, SERIAL, ENTRY)
    assert len(record) == 5 + 12 + 3 + len(ENTRY.cache_id) + len(ENTRY.session) + 16
    for text in (ENTRY.cache_id, ENTRY.session):
        for start in range(len(text) - 4):
            assert text[start : start + 4] not in record
    assert record[17:] != seal.encrypt(DIGEST, SERIAL, ENTRY)[17:], "another nonce each time"


def test_a_record_in_the_clear_is_legible() -> None:
    seal = Seal(None, os.urandom(32))
    assert ENTRY.session in seal.encrypt(DIGEST, SERIAL, ENTRY)


def test_another_key_opens_nothing() -> None:
    record = sealing().encrypt(DIGEST, SERIAL, ENTRY)
    assert sealing().decrypt(DIGEST, SERIAL, record) is None


def test_a_record_belongs_to_its_serial() -> None:
    seal = sealing()
    record = seal.encrypt(DIGEST, SERIAL, ENTRY)
    assert seal.decrypt(DIGEST, OTHER, record) is None
    assert seal.decrypt(DIGEST, b"", record) is None
    assert seal.decrypt(bytes(16), SERIAL, record) is None


def test_every_bit_counts() -> None:
    seal = sealing()
    record = seal.encrypt(DIGEST, SERIAL, Entry(5, b"id", b"session"))
    for at in range(len(record)):
        for bit in range(8):
            damaged = bytearray(record)
            damaged[at] ^= 1 << bit
            assert seal.decrypt(DIGEST, SERIAL, bytes(damaged)) is None


def test_a_part_of_a_record_is_none() -> None:
    record = (seal := sealing()).encrypt(DIGEST, SERIAL, ENTRY)
    for length in range(len(record)):
        assert seal.decrypt(DIGEST, SERIAL, record[:length]) is None
    assert seal.decrypt(DIGEST, SERIAL, record + b"\0") is None


@given(st.binary(max_size=60), st.binary(max_size=8))
@settings(max_examples=300)
def test_rubbish_is_no_exception(data: bytes, serial: bytes) -> None:
    sealed, clear = seals()
    assert sealed.decrypt(DIGEST, serial, data) is None
    entry = clear.decrypt(DIGEST, serial, data)
    assert entry is None or clear.encrypt(DIGEST, serial, entry) == data
    saved_time(data)


def test_a_digest_has_a_fixed_size_and_a_key() -> None:
    one, other = seals()
    ids = [b"", b"a", b"b", b"a" * 700, b"a" * 100_000, b"\xff\xfe"]
    digests = {one.digest(cache_id) for cache_id in ids}
    assert {len(digest) for digest in digests} == {16}
    assert len(digests) == len(ids)
    assert one.digest(b"a") == one.digest(b"a")
    assert one.digest(b"a") != other.digest(b"a")


def test_no_session_in_a_repr() -> None:
    assert "session of" not in repr(ENTRY)
    assert "example" not in repr(ENTRY)
