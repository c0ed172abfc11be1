"""status_object - the object of `tlsmgrctl status --json`, a contract with other programs.

The daemon makes a Status and prints `as_json(status)`; `tlsmgrctl` and other programs read it.
Names are never changed or removed; a new one is a field with a default. A reader takes the default
for a missing field and ignores unknown ones, so that daemon and reader may differ in version.
`Malformed` is raised for a value of the wrong type.

Times are in seconds before now ("age", "last", "oldest", "saved") or after now ("next"); they are
null when there is no such moment. Counts are over all workers of the daemon, and never decrease;
those of caches, and `counters`, go on at a reload. Bucket counts are not cumulative. There are
no ids, sessions or keys in the object.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_PLAIN: Mapping[type, tuple[type, ...]] = {
    int: (int,), bool: (bool,), str: (str,), float: (int, float),
}  # fmt: skip

SERVING, DEGRADED, STOPPING = "serving", "degraded", "stopping"  # of Status.state
IN_PLACE = 0  # Status.pid where Postfix's own tlsmgr was started in place of this one
NEW, OLD = "new", "old"  # of TicketKey.serves


class Malformed(ValueError):
    """This is no status object; the text names the first field that is wrong."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker: how many clients are connected to it, and how many requests it has answered."""

    pid: int
    clients: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Cache:
    """One session cache. `bytes` is of `size_limit`; sessions are `evicted` to make room."""

    entries: int = 0
    bytes: int = 0
    size_limit: int = 0
    lookups: int = 0
    hits: int = 0
    updates: int = 0
    deletes: int = 0
    expired: int = 0
    evicted: int = 0
    oldest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TicketKey:
    """A ticket key: the first 8 hexadecimal digits of its name, and what it serves."""

    name: str
    age_seconds: float
    serves: str  # "new": makes new tickets; "old": only decrypts those that it made


@dataclass(frozen=True, slots=True)
class Prng:
    """The pool: how often it was reseeded, from which source, and when it was saved."""

    reseeds: int = 0
    last_reseed_seconds: float | None = None
    source: str = ""
    exchange_saved_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """The times of one kind of request, in microseconds, from its last byte read to its reply.

    A bucket is [upper bound, count of requests above the bound before it]; a bound of null is no
    bound. `sum_us` is the sum of all times, null where it is not kept.
    """

    p50_us: float | None = None
    p99_us: float | None = None
    max_us: float | None = None
    count: int = 0
    sum_us: float | None = None
    buckets: tuple[tuple[float | None, int], ...] = ()


@dataclass(frozen=True, slots=True)
class FarmStore:
    """A server through which hosts share sessions, the caches that it shares, and whether it
    answers now."""

    name: str
    caches: tuple[str, ...] = ()
    answers: bool = False


@dataclass(frozen=True, slots=True)
class Farm:
    """What this host shares with others.

    `key` is the beginning of the name of the ticket key that all hosts must have at this moment,
    null where each has its own. Of the lookups that asked a store, `found` got a session, and
    `late` no answer in time; `dropped` counts updates and deletes that a store did not get.
    """

    key: str | None = None
    stores: tuple[FarmStore, ...] = ()
    asked: int = 0
    found: int = 0
    late: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """The whole object. `farm` is null on a host that is not of a farm."""

    pid: int
    version: str
    uptime_seconds: float
    state: str  # "serving", "degraded", "stopping"
    reasons: tuple[str, ...] = ()  # why it is degraded, one sentence each
    config_directory: str = ""
    workers: tuple[Worker, ...] = ()
    caches: Mapping[str, Cache] = field(default_factory=dict)
    ticket_keys: tuple[TicketKey, ...] = ()
    next_rotation_seconds: float | None = None
    prng: Prng = field(default_factory=Prng)
    latency: Mapping[str, Latency] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    farm: Farm | None = None


def as_json(status: Status) -> dict[str, object]:
    """Return the object that `json.dumps` takes."""
    return dataclasses.asdict(status)


def parse(value: object) -> Status:
    """Return the Status that `json.loads` has read. Raises Malformed."""
    status = _read(Status, value, "status")
    assert isinstance(status, Status)
    return status


def _read(kind: Any, value: object, name: str) -> object:
    """Return a value of JSON as this type; `name` is for the error."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_record(kind, value, name)
    if origin is types.UnionType:
        return None if value is None else _read(of[0], value, name)
    if origin is Mapping and isinstance(value, dict):
        return {key: _read(of[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        return _read_items(of, value, name)
    if type(value) in _PLAIN.get(kind, ()):
        return value
    raise Malformed(f"{name}: wrong type {type(value).__name__}")


def _read_record(kind: Any, value: object, name: str) -> object:
    """Return a dataclass from an object; missing fields have their defaults."""
    if not isinstance(value, dict):
        raise Malformed(f"{name}: not an object")
    hints = typing.get_type_hints(kind)
    known = {field: _read(hints[field], value[field], field) for field in hints if field in value}
    try:
        return kind(**known)
    except TypeError:
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in known]
        raise Malformed(f"{name}: of {', '.join(missing)}, one is required") from None


def _read_items(of: tuple[Any, ...], value: list[object] | tuple[object, ...], name: str) -> object:
    """Return a tuple: of one type and any length, or of one type for each place."""
    if of[-1] is Ellipsis:
        return tuple(_read(of[0], item, name) for item in value)
    if len(of) != len(value):
        raise Malformed(f"{name}: {len(value)} items instead of {len(of)}")
    return tuple(_read(kind, item, name) for kind, item in zip(of, value, strict=True))
