"""worker - a process that serves clients: accept, read, handle, write.

A worker is an event loop over its connections. One iteration reads one segment of each client that
sent something and answers lookups and the like at once. At its end it answers all seeds together,
with one extract, and then commits all updates and deletes of a cache together, before their clients
get a reply. No request waits for a sync to disk or for another client's bytes.

It ends after the current iteration on SIGTERM, and when the parent stops. On DRAIN_SIGNAL, and when
the parent was killed, it ends as ``departure`` says. It holds no lock between iterations.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from tlsmgr import log
from tlsmgr.processes import signals
from tlsmgr.processes.connections import (
    AWAY,
    READING,
    READY,
    WAITING,
    WRITING,
    Connection,
    Connections,
)
from tlsmgr.processes.departure import Departure
from tlsmgr.processes.inherited import Inherited, Pipes
from tlsmgr.processes.listeners import ACCEPT_BURST, Listeners
from tlsmgr.processes.replies import Replies
from tlsmgr.service import (
    Context,
    Deferred,
    Refusal,
    Remote,
    handle,
    refuse,
)
from tlsmgr.stats import INDEX
from tlsmgr.wire import (
    Event,
    InputWarning,
    Malformed,
    Paused,
    Request,
    RequestReader,
    Seed,
    WakeUp,
    read_whole,
)

if TYPE_CHECKING:  # a host without a farm does not load it
    from tlsmgr.processes.farm_link import FarmLink

DRAIN_SIGNAL = signal.SIGUSR1

BEAT_INTERVAL = 1.0  # seconds; the longest time between two iterations
CHECK_INTERVAL = 1.0  # seconds between two looks at connections that send no event
REQUESTS_AT_ONCE = 16  # of one client in an iteration
MOST_MISTAKES = 100  # refused requests of one client
WARNING_INTERVAL, WARNING_BURST = 60.0, 50  # seconds, and warnings of one kind in that time
NANOSECONDS = 1_000_000_000

_CONNECTIONS, _WAKEUPS, _MALFORMED = INDEX["connections"], INDEX["wakeups"], INDEX["malformed"]


class Worker:
    """The event loop."""

    def __init__(
        self,
        inherited: Inherited,
        slot: int,
        pipes: Pipes,
        context: Context,
        farm: FarmLink | None = None,
    ) -> None:
        self._inherited = inherited
        self._slot = slot
        self._pipes = pipes
        self._context = context
        self._farm = farm
        self._timer = inherited.latency.timer(slot, context.counts)
        self._epoll = select.epoll()
        count = inherited.scoreboard.connection_count(slot)
        self._connections = Connections(self._epoll, count)
        self._listeners = Listeners(self._epoll, inherited.listeners)
        self._replies = Replies(context, self._connections, farm)
        self._next_check = 0.0  # time.monotonic()
        self._departure = Departure(
            inherited, slot, pipes, self._epoll, self._listeners, self._wake_parent, self._add
        )
        self._stopping = False
        self._limit = log.Limit(WARNING_INTERVAL, WARNING_BURST)  # what clients cause

    def start(self, clients: tuple[int, ...]) -> None:
        """Catch signals, listen, and greet the clients that wait already. Raises OSError."""
        self._catch_signals()
        self._departure.watch_parent()
        if self._farm is not None:
            self._epoll.register(self._farm.fileno(), select.EPOLLIN)
        self._listeners.listen()
        for connection in clients:
            self._add(connection)

    def run(self) -> None:
        """Serve until the parent or a signal ends it."""
        self._inherited.scoreboard.beat(self._slot, time.monotonic())
        self._wake_parent()
        while not (self._stopping or self._is_departed()):
            self._iterate(self._timeout())
        self._listeners.ignore()
        if self._farm is not None:
            self._farm.give_up()
        self._iterate(0.0)
        self._timer.publish()
        self._connections.close_all()
        for cache in self._context.caches:
            cache.close()

    def _catch_signals(self) -> None:
        self._epoll.register(signals.wakeup_pipe(), select.EPOLLIN | select.EPOLLET)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(DRAIN_SIGNAL, self._departure.note_signal)

    def _wake_parent(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._pipes.wakeup_fd, b"!")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _is_departed(self) -> bool:
        return self._departure.is_active and self._departure.is_done(self._connections)

    def _timeout(self) -> float:
        """Return how many seconds to wait for events."""
        if self._replies.unread:
            return 0.0
        if not (self._listeners.paused_until or self._departure.is_active or self._farm):
            return BEAT_INTERVAL
        now, longest = time.monotonic(), BEAT_INTERVAL
        if self._farm is not None and self._farm.is_busy:
            longest = min(longest, self._farm.seconds_left(now))
        return self._listeners.timeout(now, self._departure.timeout(now, longest))

    def _iterate(self, timeout: float) -> None:
        """Wait for events and serve them; at the end send the replies that are made together."""
        events = self._epoll.poll(timeout)
        now = time.monotonic()
        self._inherited.scoreboard.beat(self._slot, now)
        if self._listeners.paused_until:
            self._listeners.resume(now)
        if self._departure.is_active:
            self._departure.note_events(events, now)
        if self._replies.unread:
            self._resume(now)
        self._serve(events, now)
        answered = time.monotonic()
        self._replies.send(answered)
        self._timer.keep(now, answered, self._replies.seeds_sent, self._replies.changes_sent)
        if now >= self._next_check:
            self._check(now)

    def _handle_fd(self, fd: int, now: float) -> None:
        """Handle an event of a descriptor that is not a client's."""
        if fd in self._listeners:
            if self._departure.may_accept:
                self._accept(fd, now)
        elif self._farm is not None and fd == self._farm.fileno():
            if not self._farm.receive(int(time.time())):
                self._epoll.unregister(fd)
        else:
            self._departure.handle(fd)

    def _accept(self, fd: int, now: float) -> None:
        if self._inherited.scoreboard.is_crowded(self._slot, now) and self._listeners.back_off(now):
            return
        burst = ACCEPT_BURST if len(self._connections) else 1  # more are told of again
        for connection in self._listeners.accept(fd, now, burst):
            self._add(connection)

    def _add(self, connection: int) -> None:
        self._context.counts[_CONNECTIONS] += 1
        self._connections.add(connection)

    def _check(self, now: float) -> None:
        """Once a second: look for waiting connections, and close those that time out.

        Also try again to open a session file that could not be opened, and note how full each is.
        """
        self._next_check = now + CHECK_INTERVAL
        if not (self._context.files_blocked[0] or self._departure.is_replaced):
            for cache in self._context.caches:
                cache.reopen()
                cache.note_usage()
        self._timer.publish()
        self._listeners.rearm()
        for connection in self._connections.timed_out(now - self._inherited.client_timeout):
            self._warn("timeout", f"timeout on {self._inherited.source}")
            self._connections.drop(connection)

    # Requests.

    def _serve(self, events: list[tuple[int, int]], now: float) -> None:
        """Read one segment of each; it nearly always is one request, answered right here."""
        find, read, answer = self._connections.get, self._connections.read, self._answer
        for fd, event in events:
            connection = find(fd)
            if connection is None:
                self._handle_fd(fd, now)
            elif connection.state:  # not READY
                self._go_on(connection, event, now)
            else:
                segment = read(connection)
                request = read_whole(segment) if segment else None
                if request is not None:
                    answer(connection, request)
                elif segment is not None:
                    self._feed(connection, segment, now)

    def _answer(self, connection: Connection, request: Request) -> None:
        """Stir the time of day, and handle the request; some replies wait for the others."""
        now = time.time_ns()
        self._context.pool.note_time(now)
        reply = handle(self._context, request, now // NANOSECONDS)
        if type(reply) is bytes:
            self._connections.send(connection, reply)
        elif isinstance(reply, Seed):
            connection.state = WAITING
            self._replies.seeds.append((connection, reply))
        elif isinstance(reply, Deferred):
            connection.state = WAITING
            self._replies.changes.append((connection, reply))
        elif isinstance(reply, Remote):
            assert self._farm is not None
            self._farm.ask(connection, reply, now // NANOSECONDS)
        else:
            assert isinstance(reply, Refusal)
            self._refuse(connection, reply)

    def _go_on(self, connection: Connection, event: int, now: float) -> None:
        """Handle an event of a connection with half-done business."""
        if connection.state == WAITING:
            return  # what it sent before comes first
        if connection.state == AWAY:
            self._connections.ignore(connection, event)
            return
        if connection.state == WRITING:
            if self._connections.send_rest(connection) and connection.state == READING:
                self._read_requests(connection)
            self._connections.note_progress(connection, now)
            return
        segment = self._connections.read(connection)
        if segment is not None:
            self._feed(connection, segment, now)

    def _feed(self, connection: Connection, segment: bytes, now: float) -> None:
        """Handle a segment that is not exactly one request; empty at the end of input."""
        if not segment:
            self._end(connection)
            return
        if connection.reader is None:
            connection.reader = RequestReader(self._inherited.source)
            connection.state = READING
        connection.reader.receive(segment)
        self._read_requests(connection)
        self._connections.note_progress(connection, now)
        if (largest := self._connections.largest()) is not None:
            text = f"too much memory for half requests from {self._inherited.source}"
            self._warn("memory", text)
            self._connections.drop(largest)

    def _read_requests(self, connection: Connection) -> None:
        """Serve the requests that its reader holds, until a reply is stuck or has to wait."""
        for _ in range(REQUESTS_AT_ONCE):
            if connection.reader is None:
                return
            event = connection.reader.next_event()
            if event is None:
                if connection.reader.is_idle:
                    connection.reader = None
                    connection.state = READY
                return
            if isinstance(event, Paused):
                break
            self._handle_event(connection, event)
            if connection.state != READING or not self._connections.is_open(connection):
                return
        connection.state = WAITING  # other clients have sent something too
        self._replies.unread.append(connection)

    def _handle_event(self, connection: Connection, event: Event) -> None:
        if isinstance(event, Malformed):
            self._refuse(connection, Refusal(refuse(event), event.complaint), event.final)
        elif isinstance(event, InputWarning):
            self._warn("input", event.text)
        elif isinstance(event, WakeUp):
            self._context.counts[_WAKEUPS] += 1
            self._connections.drop(connection)
        elif not isinstance(event, Paused):
            self._answer(connection, event)

    def _refuse(self, connection: Connection, refusal: Refusal, final: bool = False) -> None:
        """Send status -2; a client that makes too many mistakes is disconnected."""
        self._context.counts[_MALFORMED] += 1
        if refusal.complaint:
            kind = " ".join(refusal.complaint.split(" ", 2)[:2])  # "bogus cache", for example
            self._warn(kind, refusal.complaint)
        self._connections.send(connection, refusal.reply)
        connection.mistakes += 1
        if connection.mistakes == MOST_MISTAKES:
            text = f"too many refused requests from {self._inherited.source}: disconnected"
            self._warn("mistakes", text)
        if final or connection.mistakes == MOST_MISTAKES:
            self._connections.drop(connection)

    def _warn(self, kind: str, text: str) -> None:
        self._limit.warning(kind, text, time.monotonic())

    def _end(self, connection: Connection) -> None:
        """Handle EOF; report a partial request."""
        reader = connection.reader
        ending = reader.end_of_input() if reader is not None else None
        if ending is not None:
            self._handle_event(connection, ending)
        self._connections.drop(connection)

    def _resume(self, now: float) -> None:
        """Go on with clients that had sent more when their iteration ended."""
        unread, self._replies.unread = self._replies.unread, []
        for connection in unread:
            if connection.state == WAITING and self._connections.is_open(connection):
                self._connections.reply_sent(connection)
                self._read_requests(connection)
                self._connections.note_progress(connection, now)
