"""loads - the table of loads, and what their requests and replies are made of.

Ids and sizes are those of outbound mail: cache ids of 120 bytes, sessions of 1,200, seeds of 32
(Postfix smtp_key.c, tls_daemon_random_bytes). Ids and sessions follow from a number, so that every
process makes the same ones, and a lookup can be compared with what was stored. Pure.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import NamedTuple

ID_BYTES = 120
SESSION_BYTES = 1200
SEED_BYTES = 32
KEYS = 10_000  # sessions in the cache, but for growth
CACHE_TYPE = b"smtp"
DISTINCT_SESSIONS = 32  # few, so that they stay in the generator's CPU cache

SEED_LENGTH = 4 * -(-SEED_BYTES // 3)  # characters of base64
SESSION_LENGTH = 4 * -(-SESSION_BYTES // 3)


class Load(NamedTuple):
    """What each client does: requests in this order, over and over, and when it hangs up."""

    name: str
    requests: tuple[str, ...]
    per_connection: int  # requests; 0: it stays connected
    purpose: str


DELIVERY = ("lookup", "seed", "update")
LOADS: Mapping[str, Load] = {
    load.name: load
    for load in (
        Load("seed", ("seed",), 0, "random bytes, which every TLS connection asks for"),
        Load("lookup", ("lookup",), 0, "sessions that are there"),
        Load("update", ("update",), 0, "sessions that replace others"),
        Load("mta", DELIVERY, 0, "lookup, seed, update: an outbound TLS 1.3 delivery"),
        Load("mta-churn", DELIVERY, 3, "the same, with a new connection for each delivery"),
        Load("seed-churn", ("seed",), 1, "connect, announcement, one seed, close"),
    )
}


class Exchange(NamedTuple):
    """A prepared request and the reply that is due, each in two pieces.

    ``want`` and ``want_tail`` are how the reply begins, ``reply_length`` how long it is in all.
    """

    head: bytes
    tail: bytes
    want: bytes
    want_tail: bytes
    reply_length: int


class Kind(NamedTuple):
    """One of the six requests; ``fresh`` ones must be answered otherwise each time."""

    keyed: bool
    fresh: bool


KINDS: Mapping[str, Kind] = {
    "seed": Kind(keyed=False, fresh=True),
    "lookup": Kind(keyed=True, fresh=False),
    "update": Kind(keyed=True, fresh=False),
}

_DONE = b"status\x000\x00"
_END = b"\0"


def exchange(kind: str, number: int) -> Exchange:
    """The request of this kind for the key of this number, and its reply."""
    if kind == "seed":
        want = _DONE + b"seed\0"
        request = b"request\0seed\0size\0%d\0\0" % SEED_BYTES
        return Exchange(request, b"", want, b"", len(want) + SEED_LENGTH + 2)
    entry = b"request\0%b\0cache_type\0%b\0cache_id\0%b\0" % (
        kind.encode(),
        CACHE_TYPE,
        cache_id(number),
    )
    session = _session_attribute(number % DISTINCT_SESSIONS)
    if kind == "lookup":
        return Exchange(entry + _END, b"", _DONE, session, len(_DONE + session))
    return Exchange(entry, session, _DONE + _END, b"", len(_DONE + _END))


def cache_id(number: int) -> bytes:
    """A cache id as smtp(8) makes them, of 120 bytes."""
    fingerprint = sha256(b"%d" % number).hexdigest().upper()
    rest = f".mx.example.com&192.0.2.25&&&{fingerprint}"
    return f"smtp&{number:x>{ID_BYTES - len(rest) - 5}}{rest}".encode()


@cache
def session(number: int) -> bytes:
    """The session stored under the ids with this number, modulo DISTINCT_SESSIONS."""
    return random.Random(number).randbytes(SESSION_BYTES)


@cache
def _session_attribute(number: int) -> bytes:
    return b"session\0%b\0\0" % base64.b64encode(session(number))
