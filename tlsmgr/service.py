"""service - the meaning of the six requests: one table from request to handler, no I/O of its own.

Run by workers. A handler gets the context (caches, ticket keys, pool) and a well-formed request and
returns the reply. Requests that cost less together wait for the end of the iteration:
``answer_seeds`` answers all seeds with one extract, ``commit_changes`` carries out all updates and
deletes of a cache together, and lookups that forget what they find. No output is generated before
it is requested.

Rules: Postfix tlsmgr.c (tlsmgr_service). An unknown type or a seed size out of range is the
client's fault: a Refusal with status -2 and stock's warning. A missing object is status -1. A pool
that can't deliver is status -1 and never weak bytes. While ``files_blocked`` is set no cache is
touched: lookups miss, and updates are not done, status -1. Any exception raised here is a defect of
ours. Time is passed in, in whole seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from tlsmgr import log
from tlsmgr.prng.pool import EntropyError, Pool
from tlsmgr.sessions.cache import Change, SessionCache, Take
from tlsmgr.stats import INDEX
from tlsmgr.tickets import NAME_BYTES, TicketKeys
from tlsmgr.wire import (
    BAD_REQUEST,
    FAILED,
    OK,
    Delete,
    Lookup,
    Malformed,
    Policy,
    Request,
    Seed,
    TicketKey,
    Update,
    write_reply,
    write_seed,
    write_session,
)

_make = tuple.__new__  # to call the class of a NamedTuple takes half as long again
MAX_SEED = 255  # bytes (Postfix tlsmgr.c: UCHAR_MAX)


class CacheType(NamedTuple):
    """A cache type as the service knows it: its policy, and its cache if one is configured."""

    timeout: int
    cache: SessionCache | None

    @property
    def cachable(self) -> bool:
        """A database is configured and sessions live at all."""
        return self.cache is not None and self.timeout > 0


class Farm(Protocol):
    """The other hosts, which may have the session that this one lacks."""

    def may_ask(self, cache_type: bytes, cache_id: bytes) -> bool:
        """Return whether to ask them for it."""


@dataclass(frozen=True, slots=True)
class Context:
    """All that handlers work on. ``counts`` is the worker's own row of the counter table.

    ``files_blocked`` is a byte of shared memory, 1 while a file system blocks processes. ``farm``
    is None on a host that shares no sessions. ``looked_up`` are the caches into which lookups have
    looked since ``end_lookups``.
    """

    cache_types: Mapping[bytes, CacheType]
    caches: tuple[SessionCache, ...]
    ticket_keys: TicketKeys
    pool: Pool
    counts: memoryview
    files_blocked: memoryview
    farm: Farm | None = None
    looked_up: set[SessionCache] = field(default_factory=set)


class Deferred(NamedTuple):
    """A change that waits for ``commit_changes``, and the cache it is for."""

    cache: SessionCache
    change: Change | Take


class Remote(NamedTuple):
    """A lookup that found nothing here, and for which the farm is to be asked."""

    cache: SessionCache
    cache_type: bytes
    cache_id: bytes


class Refusal(NamedTuple):
    """The reply to a request that is the client's mistake, and the warning that it causes."""

    reply: bytes
    complaint: str


Reply = bytes | Seed | Deferred | Remote | Refusal


def handle(context: Context, request: Request, now: int) -> Reply:
    """Return the reply; or the Seed itself, for ``answer_seeds``; or a Deferred change; or a
    Remote lookup."""
    handler, counter = _HANDLERS[type(request)]
    context.counts[counter] += 1
    return handler(context, request, now)


def refuse(malformed: Malformed) -> bytes:
    """Return status -2, in the shape of the request that the malformed input began."""
    return write_reply(malformed.shape, BAD_REQUEST)


def answer_seeds(context: Context, seeds: Sequence[Seed]) -> list[bytes]:
    """Return the replies in order: one extract, from which each gets its own part."""
    sizes = [seed.size for seed in seeds]
    try:
        data = context.pool.extract(sum(sizes))
    except EntropyError as error:
        log.warning(f"no random bytes for {len(seeds)} requests: {error}")
        return [write_reply(Seed, FAILED)] * len(seeds)
    replies = []
    start = 0
    for size in sizes:
        replies.append(write_seed(data[start : start + size]))
        start += size
    return replies


def end_lookups(context: Context) -> bool:
    """End an iteration: the next lookups see what others stored meanwhile.

    Return whether some found expired sessions, for which ``commit_changes`` is due.
    """
    if not context.files_blocked[0]:
        for cache in context.looked_up:
            cache.end_reading()
        context.looked_up.clear()
    return any(cache.expired for cache in context.caches)


def commit_changes(context: Context, deferred: Sequence[Deferred], now: int) -> list[bytes]:
    """Carry out the changes, those of a cache together; return the replies in order."""
    if context.files_blocked[0]:
        for cache in context.caches:
            cache.expired.clear()
        context.counts[_DROPPED] += sum(change.session is not None for _, change in deferred)
        return [_reply(change, False) for _, change in deferred]
    changes: dict[SessionCache, list[Change | Take]] = {cache: [] for cache in context.caches}
    for cache, change in deferred:
        changes[cache].append(change)
    replies: dict[SessionCache, Iterator[bytes]] = {}
    for cache, mine in changes.items():
        if mine or cache.expired:
            context.counts[_BATCHES] += 1
            replies[cache] = map(_reply, mine, cache.apply(mine, now))
            context.counts[_DROPPED] += cache.take_dropped()
    return [next(replies[cache]) for cache, _ in deferred]


def _reply(change: Change | Take, done: bool) -> bytes:
    if isinstance(change, Take):
        return _NOT_FOUND if change.session is None else write_session(change.session)
    return _DONE if done else _NOT_DONE


# One handler a request.


def _seed(context: Context, request: Seed, now: int) -> Reply:
    if 1 <= request.size <= MAX_SEED:
        return request
    complaint = f'bogus seed length "{request.size}" in "seed" request'
    return Refusal(write_reply(Seed, BAD_REQUEST), complaint)


def _policy(context: Context, request: Policy, now: int) -> Reply:
    cache_type = context.cache_types.get(request.cache_type)
    if cache_type is None:
        return _bogus_cache_type(request)
    return write_reply(Policy, OK, cache_type.cachable, cache_type.timeout)


def _lookup(context: Context, request: Lookup, now: int) -> Reply:
    cache_type, cache_id = request
    cache = _cache(context, cache_type)
    if cache is None:
        return _no_cache(context, request)
    found = None
    if not context.files_blocked[0]:
        context.looked_up.add(cache)
        found = cache.lookup(cache_id, now)
    if type(found) is bytes:
        return write_session(found)
    if isinstance(found, Take):
        return Deferred(cache, found)
    if context.farm is not None and context.farm.may_ask(cache_type, cache_id):
        return Remote(cache, cache_type, cache_id)
    return _NOT_FOUND


def _update(context: Context, request: Update, now: int) -> Reply:
    cache_type, cache_id, session = request
    cache = _cache(context, cache_type)
    if cache is None:
        return _no_cache(context, request)
    return _make(Deferred, (cache, _make(Change, (cache_id, session, 0))))


def _delete(context: Context, request: Delete, now: int) -> Reply:
    cache_type, cache_id = request
    cache = _cache(context, cache_type)
    if cache is None:
        return _no_cache(context, request)
    return Deferred(cache, Change(cache_id, None))


def _ticket_key(context: Context, request: TicketKey, now: int) -> Reply:
    name = request.keyname
    if len(name) not in (0, NAME_BYTES):
        complaint = f"invalid session ticket key name length: {len(name)}"
        return Refusal(write_reply(TicketKey, BAD_REQUEST), complaint)
    keys = context.ticket_keys
    try:
        key = keys.named(name, now) if name else keys.current(now)
    except EntropyError as error:
        log.warning(f"no random bytes for a ticket key: {error}")
        key = None
    if key is not None:
        return write_reply(TicketKey, OK, key)
    if name:
        context.counts[_UNKNOWN_KEYS] += 1
    return write_reply(TicketKey, FAILED)


def _cache(context: Context, name: bytes) -> SessionCache | None:
    cache_type = context.cache_types.get(name)
    return None if cache_type is None else cache_type.cache


def _no_cache(context: Context, request: Lookup | Update | Delete) -> Refusal:
    """Refuse a known type that has no database as an unknown one, but without a warning."""
    if request.cache_type not in context.cache_types:
        return _bogus_cache_type(request)
    return Refusal(write_reply(type(request), BAD_REQUEST), "")


def _bogus_cache_type(request: Policy | Lookup | Update | Delete) -> Refusal:
    text = request.cache_type[:100].decode("utf-8", "surrogateescape")
    name = type(request).__name__.lower()
    complaint = f'bogus cache type "{text}" in "{name}" request'
    return Refusal(write_reply(type(request), BAD_REQUEST), complaint)


_BATCHES, _DROPPED = INDEX["batches"], INDEX["dropped"]
_UNKNOWN_KEYS = INDEX["unknown_keys"]
_NOT_FOUND = write_reply(Lookup, FAILED)
_DONE, _NOT_DONE = write_reply(Update, OK), write_reply(Update, FAILED)  # a delete's are the same
_HANDLERS: Mapping[type[Request], tuple[Callable[[Context, Any, int], Reply], int]] = {
    Seed: (_seed, INDEX["seed"]),
    Policy: (_policy, INDEX["policy"]),
    Lookup: (_lookup, INDEX["lookup"]),
    Update: (_update, INDEX["update"]),
    Delete: (_delete, INDEX["delete"]),
    TicketKey: (_ticket_key, INDEX["tktkey"]),
}
