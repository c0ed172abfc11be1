"""control_commands - what the control socket's requests do: one table, a generator for each.

A generator yields parts of the reply, and does one bounded piece of work for each; between two of
them the process serves others. ``Refused`` is raised for what cannot be done; the text is for the
peer. Files are touched by ``list`` and ``drop`` alone, and not while a file system blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tlsmgr import log
from tlsmgr.control_lines import (
    ControlRequest,
    DropRequest,
    ListRequest,
    RotateRequest,
    StatusRequest,
    data_line,
    quote,
    show_id,
)
from tlsmgr.prng.pool import EntropyError
from tlsmgr.processes.control_status import Facts, Moment, make_status
from tlsmgr.processes.inherited import Inherited
from tlsmgr.sessions.browse import BrowsedCache
from tlsmgr.sessions.der import protocol_name
from tlsmgr.sessions.file import StoreError
from tlsmgr.sessions.seal import Entry
from tlsmgr.status_object import as_json
from tlsmgr.tickets import NoRotation


class Refused(Exception):
    """The request cannot be carried out; the text says why."""


class Commands:
    """The requests, on what this process has inherited."""

    def __init__(self, facts: Facts, inherited: Inherited) -> None:
        self._facts = facts
        self._inherited = inherited
        self._caches = {
            plan.rules.cache_type: BrowsedCache(plan.rules, plan.shared, plan.file)
            if plan.file is not None
            else None
            for plan in inherited.caches
        }

    def run(self, request: ControlRequest) -> Iterator[bytes]:
        """Return the lines of the reply, but for the last one. Raises Refused on the way."""
        try:
            yield from _TABLE[type(request)](self, request)
        except StoreError as error:
            raise Refused(str(error)) from None

    def _status(self, _: StatusRequest) -> Iterator[bytes]:
        now = Moment(time.monotonic(), time.time())
        yield data_line(as_json(make_status(self._facts, self._inherited, now)))

    def _list(self, request: ListRequest) -> Iterator[bytes]:
        cache = self._cache(request.cache_type)
        for entries in cache.entries(request.match, int(time.time())):
            now = int(time.time())
            yield b"".join(data_line(_describe(entry, now)) for entry in entries)
            self._check_files()

    def _drop(self, request: DropRequest) -> Iterator[bytes]:
        cache, dropped = self._cache(request.cache_type), 0
        try:
            for count in cache.drop(request.match):
                dropped += count
                yield b""
                self._check_files()
        finally:
            if dropped:
                log.info(f"control socket: dropped {dropped} {request.cache_type} sessions")
        yield data_line({"dropped": dropped})

    def _rotate(self, _: RotateRequest) -> Iterator[bytes]:
        keys, now = self._inherited.ticket_keys, int(time.time())
        try:
            if not keys.rotate(now):
                raise Refused("another process has locked the ticket keys; try again")
        except (NoRotation, EntropyError) as error:
            raise Refused(str(error)) from None
        name = keys.known(now)[0].name.hex()[:8]
        log.info(f"control socket: the session ticket key for new tickets is now {name}")
        yield data_line({"name": name})

    def _cache(self, cache_type: str) -> BrowsedCache:
        if cache_type not in self._caches:
            known = ", ".join(self._caches) or "none"
            raise Refused(f"there is no {quote(cache_type)} session cache (there are: {known})")
        self._check_files()
        cache = self._caches[cache_type]
        if cache is None:
            raise Refused(f"the {cache_type} session cache cannot be used; the log says why")
        return cache

    def _check_files(self) -> None:
        if self._inherited.scoreboard.files_blocked[0]:
            raise Refused("a file system does not respond; try again when it does")


def _describe(entry: Entry, now: int) -> dict[str, object]:
    return {
        "id": show_id(entry.cache_id),
        "age_seconds": max(0, now - entry.saved),
        "bytes": len(entry.session),
        "protocol": protocol_name(entry.session),
    }


_TABLE: Mapping[type[ControlRequest], Callable[[Commands, Any], Iterator[bytes]]] = {
    StatusRequest: Commands._status,
    ListRequest: Commands._list,
    DropRequest: Commands._drop,
    RotateRequest: Commands._rotate,
}
