"""secret - the ticket keys that all hosts of a farm derive from one secret. Pure functions.

Each line of the secret file has a date (UTC) and a secret of 32 bytes that holds from that date on.
The secret of a later day is reached by one step a day, which cannot be undone (the ratchet). A day
is divided into slots, and each slot has one ticket key. So hosts with the same file and the same
lifetime of tickets, T, have the same keys at the same time, and need not talk to each other.

A day is a number of days since 1970-01-01, a slot a number of slots since then. The key of a slot
serves new tickets until the slot ends and old ones for another T/2. The key of the next slot is
known as well, because the clock of another host may be some seconds ahead.

HKDF-Expand is that of RFC 5869 with SHA-256; a secret, being uniformly random, is used as its
pseudorandom key. The formats are in tlsmgr-farm(7). A file that is malformed raises BadSecret, with
a reason that never quotes the file. Nothing is logged here, and no repr shows a secret.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import functools
import hashlib
import hmac
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

DAY = 86400  # seconds
SECRET_BYTES = 32
SHORTEST_SLOT = 60  # seconds
CLOCK_SKEW = 300  # seconds by which the clock of another host may be behind, at most
HEADER = "# date (UTC, from which the secret holds)  32 bytes, base64\n"

_HASH_BYTES = hashlib.sha256().digest_size
_NEXT_DAY, _TICKET_KEY = b"tlsmgr farm v1 next day", b"tlsmgr farm v1 ticket key"
_RANDOM_BYTES = 80  # of a ticket key: name 16, cipher key 32, MAC key 32
_SLOT = struct.Struct(">QII")  # slot, its length, T
_TOUT = struct.Struct("=q")  # as in TicketKeys
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_EPOCH = datetime.date(1970, 1, 1).toordinal()


class BadSecret(Exception):
    """The secret file cannot be used; the text is the reason, without the name of the file."""


@dataclass(frozen=True)
class Secret:
    """A secret and the first day on which it holds; its repr shows the day only."""

    day: int
    key: bytes = field(repr=False)


Secrets = Sequence[Secret]
"""In the order of their days."""


def expand(key: bytes, info: bytes, length: int) -> bytes:
    """Return `length` bytes of HKDF-Expand (RFC 5869, section 2.3) with SHA-256."""
    if not 0 <= length <= 255 * _HASH_BYTES:
        raise ValueError(f"HKDF-Expand cannot return {length} bytes")
    block = output = b""
    for number in range(1, -(-length // _HASH_BYTES) + 1):
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        output += block
    return output[:length]


# The file.


def parse(text: bytes, today: int) -> Secrets:
    """Return the secrets in the text of a secret file, one of which holds today.

    Raises BadSecret.
    """
    found: dict[int, Secret] = {}
    for number, line in enumerate(text.decode("latin-1").splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            secret = _parse_line(fields)
            if secret.day in found:
                raise BadSecret(f"the date {date_text(secret.day)} occurs twice")
        except BadSecret as error:
            raise BadSecret(f"line {number}: {error}") from None
        found[secret.day] = secret
    if not found:
        raise BadSecret("there is no secret in it")
    if min(found) > today:
        dates = f"the first date is {date_text(min(found))}, today is {date_text(today)}"
        raise BadSecret(f"no secret holds yet: {dates} (UTC)")
    return [found[day] for day in sorted(found)]


def _parse_line(fields: Sequence[str]) -> Secret:
    if len(fields) != 2:
        raise BadSecret("expected a date and a secret in base64")
    date, secret = fields
    day = _parse_date(date)
    try:
        key = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        raise BadSecret("the secret is not base64") from None
    if len(key) != SECRET_BYTES:
        raise BadSecret(f"the secret has {len(key)} bytes instead of {SECRET_BYTES}")
    if len(set(key)) == 1:
        raise BadSecret("all bytes of the secret are equal")
    return Secret(day, key)


def _parse_date(text: str) -> int:
    """Return the day. A malformed date is not quoted, because it may be the secret."""
    try:
        if _DATE.fullmatch(text):
            day = datetime.date.fromisoformat(text).toordinal() - _EPOCH
            if day >= 0:
                return day
    except ValueError:
        pass
    raise BadSecret("expected a date as YYYY-MM-DD, 1970-01-01 or later")


def to_text(secrets: Secrets) -> str:
    """Return the text of a secret file with these secrets."""
    lines = (f"{date_text(s.day)} {base64.b64encode(s.key).decode()}\n" for s in secrets)
    return HEADER + "".join(lines)


def date_text(day: int) -> str:
    """Return a day as YYYY-MM-DD."""
    return datetime.date.fromordinal(day + _EPOCH).isoformat()


# The ratchet.


def secret_of(secrets: Secrets, day: int) -> bytes | None:
    """Return the secret of a day; None for a day before the first date."""
    latest = [secret for secret in secrets if secret.day <= day][-1:]
    if not latest:
        return None
    key = latest[0].key
    for _ in range(day - latest[0].day):
        key = expand(key, _NEXT_DAY, SECRET_BYTES)
    return key


def advance(secrets: Secrets, day: int) -> Secrets:
    """Return secrets from which those of `day` and later, but none of earlier days, follow."""
    key = secret_of(secrets, day)
    if key is None:
        return secrets
    return [Secret(day, key), *(secret for secret in secrets if secret.day > day)]


# The slots. `lifetime` is T in seconds and not 0.


@functools.cache
def slot_length(lifetime: int) -> int:
    """Return the seconds of a slot: the largest divisor of a day that is at most T/2, or 60."""
    longest = max(SHORTEST_SLOT, min(lifetime // 2, DAY))
    return next(length for length in range(longest, 0, -1) if DAY % length == 0)


def known_slots(now: int, lifetime: int) -> range:
    """Return the slots whose keys are known at `now`; the last one is the next slot."""
    length = slot_length(lifetime)
    return range((now - lifetime // 2) // length, now // length + 2)


def day_of(slot: int, lifetime: int) -> int:
    """Return the day of a slot; no slot is in two days."""
    return slot * slot_length(lifetime) // DAY


def first_day(now: int, lifetime: int) -> int:
    """Return the first day whose secret a ticket that is accepted at `now` may need."""
    return day_of(known_slots(now, lifetime)[0], lifetime)


def ticket_key(secret: bytes, slot: int, lifetime: int) -> bytes:
    """Return the 88-byte key of a slot; `secret` is that of its day."""
    length = slot_length(lifetime)
    info = _TICKET_KEY + _SLOT.pack(slot, length, lifetime)
    return expand(secret, info, _RANDOM_BYTES) + _TOUT.pack((slot + 1) * length)
