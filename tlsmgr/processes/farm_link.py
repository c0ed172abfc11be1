"""farm_link - a worker's end of the socket to the farm process.

A lookup that finds nothing here asks the farm, if its engine may be asked and the miss is not a
recent one. Its connection is AWAY until the answer comes or the deadline has passed; then the reply
is "not found". All messages of an iteration go together, and nothing here blocks: what the socket
does not take is dropped and counted. Other connections do not notice.

What was found, in time or late, is stored in the cache of this host as well, with the time at which
another host saved it, unless there is one already. Updates and deletes are sent when they have been
carried out here, before their clients get the reply, so that a lookup that comes later in any
worker cannot overtake them.

Answers for a worker that died are told apart by their serial. Bounded: one lookup for each
connection, MOST_LATE that are overdue, MOST_MISSES misses. Runs in a worker.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import NamedTuple

from tlsmgr.farm.codec import Codec
from tlsmgr.farm.messages import (
    LARGEST_DATAGRAM,
    NO_KEY,
    Answer,
    Ask,
    Remove,
    Store,
    Writer,
    answers_in,
    serial_of,
)
from tlsmgr.processes.connections import AWAY, Connection, Connections
from tlsmgr.processes.farm_plan import FarmPlan
from tlsmgr.service import Deferred, Remote
from tlsmgr.sessions.cache import Change, Take
from tlsmgr.stats import INDEX
from tlsmgr.wire import FAILED, Lookup, write_reply, write_session

MISS_TIME = 2.0  # seconds for which a miss is remembered
MOST_MISSES, MOST_LATE = 10000, 1000
LATE_TIME = 5.0  # seconds after the deadline, in which an answer is still of use

_LOOKUPS, _FOUND = INDEX["farm_lookups"], INDEX["farm_found"]
_LATE, _DROPPED = INDEX["farm_late"], INDEX["farm_dropped"]
_NOT_FOUND = write_reply(Lookup, FAILED)


class _Asked(NamedTuple):
    """A lookup that the farm was asked for. ``connection`` is None when its deadline has passed."""

    connection: Connection | None
    remote: Remote
    keys: tuple[bytes, ...]
    deadline: float


Finished = tuple[Connection, bytes]
"""A connection that is not AWAY any more, and its reply."""


class FarmLink:
    """The link of one worker. ``serial`` is a number that no other worker has had."""

    def __init__(
        self,
        plan: FarmPlan,
        end: socket.socket,
        serial: int,
        codecs: dict[bytes, Codec],
        counts: memoryview,
    ) -> None:
        self._plan = plan
        self._end = end
        self._serial = serial
        self._codecs = codecs
        self._counts = counts
        self._writer = Writer(serial)
        self._number = 0
        self._asked: dict[int, _Asked] = {}  # by number, hence by deadline
        self._late: dict[int, _Asked] = {}
        self._misses: dict[tuple[bytes, bytes], float] = {}
        self._finished: list[tuple[_Asked, bytes]] = []
        self.is_busy = False
        """Whether ``run`` has something to do, now or later."""
        self.fills: list[Deferred] = []
        """The sessions of other hosts that are to be stored here."""
        self._buffer = memoryview(bytearray(LARGEST_DATAGRAM))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._end.fileno()

    # A lookup.

    def may_ask(self, cache_type: bytes, cache_id: bytes) -> bool:
        """Return whether a lookup that found nothing is worth a question."""
        lane = self._plan.caches.get(cache_type)
        if lane is None or not self._plan.open_lanes[lane]:
            return False
        missed = self._misses.get((cache_type, cache_id))
        return missed is None or time.monotonic() - missed > MISS_TIME

    def ask(self, connection: Connection, remote: Remote, now: int) -> None:
        """Send a lookup; the reply comes from ``run``."""
        connection.state = AWAY
        self.is_busy = True
        keys = self._codecs[remote.cache_type].keys(remote.cache_id, now)
        asked = _Asked(connection, remote, keys, time.monotonic() + self._plan.deadline)
        if not keys:
            self._finished.append((asked, _NOT_FOUND))
            return
        self._counts[_LOOKUPS] += 1
        self._number += 1
        self._asked[self._number] = asked
        self._writer.add(Ask(self._plan.caches[remote.cache_type], self._number, keys))

    def receive(self, now: int) -> bool:
        """Take the answers that have come; return False when the other end is closed.

        After a reload or the death of the parent it is, when the farm process has gone.
        """
        while True:
            try:
                size = self._end.recv_into(self._buffer)
            except BlockingIOError:
                return True
            except ConnectionError:  # something of ours was not read
                return False
            if not size:
                return False
            datagram = self._buffer[:size]
            if serial_of(datagram) == self._serial:
                for answer in answers_in(datagram):
                    self._take(answer, now)

    def _take(self, answer: Answer, now: int) -> None:
        asked = self._asked.pop(answer.number, None) or self._late.pop(answer.number, None)
        if asked is None:
            return
        codec = self._codecs[asked.remote.cache_type]
        entry = None
        if answer.which != NO_KEY:
            entry = codec.decode(asked.keys[answer.which], answer.value, now)
        if entry is not None and not asked.remote.cache.may_share(entry.session):
            entry = None
        if entry is not None:
            self._counts[_FOUND] += 1
            if not self._is_changed(asked):
                change = Change(asked.remote.cache_id, entry.session, entry.saved)
                self.fills.append(Deferred(asked.remote.cache, change))
        elif self._is_open(asked.remote.cache_type):
            self._remember_miss(asked.remote.cache_type, asked.remote.cache_id)
        if asked.connection is not None:
            reply = _NOT_FOUND if entry is None else write_session(entry.session)
            self._finished.append((asked, reply))

    def seconds_left(self, now: float) -> float:
        """Return the seconds until the next deadline."""
        if self._finished:
            return 0.0
        for asked in self._asked.values():
            return max(0.0, asked.deadline - now)
        return float("inf")

    def run(self, now: float, connections: Connections) -> list[Finished]:
        """End an iteration: send what has gathered; return the lookups that are over."""
        self._send()
        self._end_overdue(now)
        self._forget_late(now)
        finished, self._finished = self._finished, []
        self.is_busy = bool(self._asked or self._late)
        done = []
        for asked, reply in finished:
            connection = asked.connection
            if connection is not None and connections.is_open(connection):
                connections.listen_again(connection)
                done.append((connection, reply))
        return done

    def give_up(self) -> None:
        """Have ``run`` end all lookups."""
        for number in list(self._asked):
            self._finished.append((self._asked.pop(number), _NOT_FOUND))

    def _end_overdue(self, now: float) -> None:
        while self._asked:
            oldest = next(iter(self._asked))
            if self._asked[oldest].deadline > now:
                return
            asked = self._asked.pop(oldest)
            self._counts[_LATE] += 1
            self._finished.append((asked, _NOT_FOUND))
            self._late[oldest] = asked._replace(connection=None)

    def _forget_late(self, now: float) -> None:
        while self._late:
            oldest = next(iter(self._late))
            if len(self._late) <= MOST_LATE and self._late[oldest].deadline + LATE_TIME > now:
                break
            del self._late[oldest]

    # Updates and deletes.

    def write_behind(self, changes: Iterable[Deferred], now: int) -> None:
        """Pass on changes that have been carried out here."""
        for cache, change in changes:
            cache_type = cache.rules.cache_type.encode()
            lane = self._plan.caches.get(cache_type)
            if lane is None or isinstance(change, Take):
                continue
            if change.session is None or cache.may_share(change.session):
                self._pass_on(cache_type, lane, change, now)
        self._send()

    def _pass_on(self, cache_type: bytes, lane: int, change: Change, now: int) -> None:
        codec = self._codecs[cache_type]
        if change.session is None:
            self._remember_miss(cache_type, change.cache_id)
            keys = codec.keys(change.cache_id, now)
            if keys:
                self._writer.add(Remove(lane, keys))
            return
        self._misses.pop((cache_type, change.cache_id), None)
        item = codec.encode(change.cache_id, change.session, now)
        if item is None:
            self._counts[_DROPPED] += 1
        else:
            self._writer.add(Store(lane, *item))

    def _is_changed(self, asked: _Asked) -> bool:
        """Return whether this worker has deleted the session since the farm was asked for it."""
        missed = self._misses.get((asked.remote.cache_type, asked.remote.cache_id))
        return missed is not None and missed > asked.deadline - self._plan.deadline

    def _is_open(self, cache_type: bytes) -> bool:
        return bool(self._plan.open_lanes[self._plan.caches[cache_type]])

    def _remember_miss(self, cache_type: bytes, cache_id: bytes) -> None:
        if len(self._misses) >= MOST_MISSES:
            self._misses.clear()
        self._misses[cache_type, cache_id] = time.monotonic()

    def _send(self) -> None:
        for datagram, writes in self._writer.take():
            try:
                self._end.send(datagram)
            except OSError:
                self._counts[_DROPPED] += writes
