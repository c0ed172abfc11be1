"""The secret of a farm: HKDF-Expand, the file, the ratchet, the slots and their keys."""

from __future__ import annotations

import base64
import struct

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st
from support.checkout import CHECKOUT
from support.farm_secret import DAY, EXAMPLE, EXAMPLE_DATE, EXAMPLE_KEY, at, day, file_text

from tlsmgr.farm.secret import (
    BadSecret,
    Secret,
    Secrets,
    advance,
    date_text,
    day_of,
    expand,
    first_day,
    known_slots,
    parse,
    secret_of,
    slot_length,
    ticket_key,
    to_text,
)

FIRST = day(EXAMPLE_DATE)
OTHER_KEY = bytes(range(32))
LIFETIMES = [120, 121, 140, 1000, 3600, 7200, 86400, 172798, 172800, 8_640_000]


def example() -> Secrets:
    return parse(EXAMPLE.encode(), FIRST)


def expand_independently(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand of another implementation."""
    return HKDFExpand(SHA256(), length, info).derive(key)


# --------------------------------------------------------------------------------------- RFC 5869

RFC_5869 = [  # appendix A, test cases 1 to 3: PRK, info, OKM
    (
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
        "cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize(("prk", "info", "okm"), RFC_5869, ids=["A.1", "A.2", "A.3"])
def test_the_vectors_of_rfc_5869(prk: str, info: str, okm: str) -> None:
    output = bytes.fromhex(okm)
    assert expand(bytes.fromhex(prk), bytes.fromhex(info), len(output)) == output


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=80), st.integers(1, 255 * 32))
def test_another_implementation_agrees(key: bytes, info: bytes, length: int) -> None:
    assert expand(key, info, length) == expand_independently(key, info, length)


def test_the_lengths_that_the_rfc_allows() -> None:
    assert expand(OTHER_KEY, b"", 0) == b""
    assert len(expand(OTHER_KEY, b"", 255 * 32)) == 255 * 32
    for length in (-1, 255 * 32 + 1):
        with pytest.raises(ValueError, match="cannot return"):
            expand(OTHER_KEY, b"", length)


# --------------------------------------------------------------------------------------- the keys

# T = 3600, 12:00:00 UTC. These values are in tlsmgr-farm(7) as well.
VECTORS = {
    "2026-11-25": "93424e48c4766e5a5021ada73be4f7b9"
    "e5e1e17e7f01ac3800b4c3947d07b368f4b87d1d8f857a1a1d70de70bb197f4c"
    "68d1cde62c6e2301bf71b91f5225d9fbeb14137394e9db9bda725e637ce8c5f7"
    "c8d4066b00000000",
    "2026-12-01": "f1e9ddd1a3b079b1b3e1161dab2cbc00"
    "5f640a4cf2786e277e8b6447bcb99e39ddb504eb88055232a78525c1a52b5683"
    "9f0c10821924fe485c83a779709126ec21f3ea0e4da9c352ab156fe47f8642d7"
    "c8bd0e6b00000000",
}


@pytest.mark.parametrize("date", VECTORS)
def test_the_example(date: str) -> None:
    secret = secret_of(example(), day(date))
    assert secret is not None
    key = ticket_key(secret, at(f"{date} 12:00:00") // 1800, 3600)
    vector = bytes.fromhex(VECTORS[date])
    assert key[:80] == vector[:80]
    assert key[80:] == struct.pack("=Q", *struct.unpack("<Q", vector[80:]))


def test_the_page_has_the_example_and_its_keys() -> None:
    page = (CHECKOUT / "man" / "tlsmgr-farm.7").read_text()
    assert f"\n{EXAMPLE}" in page
    for date, digits in VECTORS.items():
        key = (
            f"{date}, i = {at(f'{date} 12:00:00') // 1800}\n"
            f"name        {digits[:32]}\n"
            f"cipher key  {digits[32:96]}\n"
            f"MAC key     {digits[96:160]}\n"
        )
        assert key in page


@given(st.integers(0, 400), st.integers(0, DAY - 1), st.sampled_from(LIFETIMES))
def test_an_independent_derivation(days: int, second: int, lifetime: int) -> None:
    """From the description in tlsmgr-farm(7), with another implementation of HKDF."""
    now = (FIRST + days) * DAY + second
    length = max(n for n in range(1, DAY + 1) if DAY % n == 0 and n <= max(60, lifetime // 2))
    slot = now // length
    key = EXAMPLE_KEY
    for _ in range(days):
        key = expand_independently(key, b"tlsmgr farm v1 next day", 32)
    info = b"tlsmgr farm v1 ticket key"
    info += slot.to_bytes(8, "big") + length.to_bytes(4, "big") + lifetime.to_bytes(4, "big")
    expected = expand_independently(key, info, 80) + struct.pack("=q", (slot + 1) * length)
    assert slot_length(lifetime) == length
    assert secret_of(example(), FIRST + days) == key
    assert ticket_key(key, slot, lifetime) == expected


def test_keys_differ_by_slot_lifetime_and_secret() -> None:
    keys = [
        ticket_key(secret, slot, lifetime)
        for secret in (EXAMPLE_KEY, OTHER_KEY)
        for slot in (981_000, 981_001)
        for lifetime in (3600, 3601, 7200)  # the first two have slots of equal length
    ]
    assert len({key[:16] for key in keys}) == len({key[16:80] for key in keys}) == len(keys)


# -------------------------------------------------------------------------------------- the slots


@pytest.mark.parametrize(
    ("lifetime", "length"),
    [
        (120, 60), (121, 60), (144, 72), (142, 64), (3600, 1800), (7199, 3456), (172799, 43200),
        (172800, 86400), (8_640_000, 86400),
    ],
)  # fmt: skip
def test_the_length_of_a_slot(lifetime: int, length: int) -> None:
    assert slot_length(lifetime) == length


@pytest.mark.parametrize("lifetime", LIFETIMES)
def test_which_slots_are_known(lifetime: int) -> None:
    """Exactly those of which tickets may live, and the next one."""
    length, half = slot_length(lifetime), lifetime // 2
    midnight = (FIRST + 3) * DAY
    for now in {midnight + k * length + d for k in (-2, -1, 0, 1, 2) for d in (-1, 0, 1, 7)}:
        current = now // length
        around = range(current - half // length - 5, current + 6)
        living = {slot for slot in around if (slot + 1) * length + half > now and slot <= current}
        assert set(known_slots(now, lifetime)) == living | {current + 1}
        assert first_day(now, lifetime) == min(slot * length // DAY for slot in living)


@pytest.mark.parametrize("lifetime", LIFETIMES)
def test_no_slot_is_in_two_days(lifetime: int) -> None:
    length = slot_length(lifetime)
    for slot in known_slots(FIRST * DAY, lifetime):
        assert day_of(slot, lifetime) == slot * length // DAY == ((slot + 1) * length - 1) // DAY


# ------------------------------------------------------------------------------------ the ratchet


def test_the_ratchet_reaches_a_day_by_any_way() -> None:
    far = FIRST + 1000
    direct = secret_of(example(), far)
    by_days = example()
    for number in range(FIRST, far + 1):
        by_days = advance(by_days, number)
        assert [secret.day for secret in by_days] == [number]
    assert by_days[0].key == direct == secret_of(advance(example(), FIRST + 500), far)


def test_what_advanced_loses_the_days_before() -> None:
    advanced = advance(example(), FIRST + 2)
    assert secret_of(advanced, FIRST + 1) is None
    assert EXAMPLE_KEY not in {secret.key for secret in advanced}


def test_dates_planned_ahead() -> None:
    planned = {
        EXAMPLE_DATE: EXAMPLE_KEY,
        "2026-12-24": OTHER_KEY,
        "2027-01-01": bytes(range(1, 33)),
    }
    secrets = parse(file_text(planned).encode(), FIRST)
    change = day("2026-12-24")
    assert secret_of(secrets, change - 1) == secret_of(example(), change - 1)
    assert secret_of(secrets, change) == OTHER_KEY
    assert secret_of(secrets, change + 1) == expand(OTHER_KEY, b"tlsmgr farm v1 next day", 32)
    assert [s.day for s in advance(secrets, change - 1)] == [change - 1, change, day("2027-01-01")]
    assert [s.day for s in advance(secrets, change)] == [change, day("2027-01-01")]
    for number in range(FIRST + 5, FIRST + 60):
        assert secret_of(advance(secrets, FIRST + 5), number) == secret_of(secrets, number)


def test_before_the_first_date_there_is_nothing() -> None:
    assert secret_of(example(), FIRST - 1) is None
    assert advance(example(), FIRST - 1) == example()


# --------------------------------------------------------------------------------------- the file

GOOD = "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k="


def test_a_file_with_comments_and_dates_in_any_order() -> None:
    text = f"# comment\n\n  # another\r\n2026-12-24\t{GOOD}  \n\n 2026-11-25 {GOOD}"
    dates = [date_text(secret.day) for secret in parse(text.encode(), FIRST)]
    assert dates == ["2026-11-25", "2026-12-24"]


def test_a_file_of_ours_is_read_as_it_was_written() -> None:
    secrets = [Secret(FIRST, EXAMPLE_KEY), Secret(FIRST + 40, OTHER_KEY)]
    text = to_text(secrets)
    assert parse(text.encode(), FIRST) == secrets
    assert text.splitlines()[1] == EXAMPLE.strip()


def secret_text(length: int) -> str:
    return base64.b64encode(bytes(range(length))).decode()


EQUAL = base64.b64encode(b"\xa5" * 32).decode()
NO_DATE = "expected a date as YYYY-MM-DD, 1970-01-01 or later"
NO_PAIR = "expected a date and a secret in base64"
NOT_BASE64 = "the secret is not base64"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no secret in it"),
        ("# 2026-11-25\n\n", "there is no secret in it"),
        (GOOD, f"line 1: {NO_PAIR}"),
        (f"# comment\n\n{EXAMPLE_DATE}\n", f"line 3: {NO_PAIR}"),
        (f"{EXAMPLE_DATE} {GOOD} # comment", f"line 1: {NO_PAIR}"),
        (f"{GOOD} {EXAMPLE_DATE}", f"line 1: {NO_DATE}"),
        (f"2026-11-31 {GOOD}", f"line 1: {NO_DATE}"),
        (f"2026-13-01 {GOOD}", f"line 1: {NO_DATE}"),
        (f"20261125 {GOOD}", f"line 1: {NO_DATE}"),
        (f"2026-W48-3 {GOOD}", f"line 1: {NO_DATE}"),
        (f"2026-1-1 {GOOD}", f"line 1: {NO_DATE}"),
        (f"1969-12-31 {GOOD}", f"line 1: {NO_DATE}"),
        (f"0000-01-01 {GOOD}", f"line 1: {NO_DATE}"),
        (f"\N{FULLWIDTH DIGIT TWO}026-11-25 {GOOD}", f"line 1: {NO_DATE}"),
        (f"{EXAMPLE_DATE} {GOOD[:-1]}", f"line 1: {NOT_BASE64}"),
        (f"{EXAMPLE_DATE} {GOOD[:-4]}*k8=", f"line 1: {NOT_BASE64}"),
        (f"{EXAMPLE_DATE} {GOOD}{GOOD}", f"line 1: {NOT_BASE64}"),
        (f"{EXAMPLE_DATE} \N{LATIN SMALL LETTER E WITH ACUTE}{GOOD}", f"line 1: {NOT_BASE64}"),
        (f"{EXAMPLE_DATE} {secret_text(31)}", "line 1: the secret has 31 bytes instead of 32"),
        (f"{EXAMPLE_DATE} {secret_text(33)}", "line 1: the secret has 33 bytes instead of 32"),
        (f"{EXAMPLE_DATE} {EQUAL}", "line 1: all bytes of the secret are equal"),
        (f"{EXAMPLE}\n{EXAMPLE}", f"line 3: the date {EXAMPLE_DATE} occurs twice"),
        (
            f"2026-11-26 {GOOD}\n2026-11-27 {GOOD}",
            "no secret holds yet: the first date is 2026-11-26, today is 2026-11-25 (UTC)",
        ),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_and_not_quoted(text: str, reason: str) -> None:
    with pytest.raises(BadSecret) as refusal:
        parse(text.encode(), FIRST)
    assert str(refusal.value) == reason


@given(st.binary(max_size=200))
def test_any_rubbish_is_refused(text: bytes) -> None:
    with pytest.raises(BadSecret):
        parse(text, FIRST)


def test_a_secret_is_in_no_repr() -> None:
    assert repr(example()) == f"[Secret(day={FIRST})]"
