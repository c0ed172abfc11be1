"""worker - one process of many that answer clients: accept, read, handle, write.

A worker is an event loop over its clients. A turn of it reads one segment of each client that sent
something, answers seeds, lookups and the like at once, and carries out all updates and deletes
together at the turn's end, as one transaction a cache, before they are answered. No request makes a
disk wait, and no client waits for another one's bytes.

New connections are spread without a lock: EPOLLEXCLUSIVE wakes one idle worker for each, and a
worker that accepted goes to the end of the kernel's queue by registering the listener again.

Ends, after the turn at hand: when the parent has gone (its end of the lifeline closes, kill -9
included), and on SIGTERM. A defect of ours ends it with a traceback in the log and status 1; what
keeps it from serving at all with status BOOT_ERROR, on which the parent gives up. A cache that
can't be opened is a warning. It holds no lock between turns, and no descriptor but its heritage.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.processes.clients import Client, Clients
from tlsmgr.processes.heritage import CachePlan, Heritage
from tlsmgr.service import CacheType, Context, Deferred, handle, refuse, settle
from tlsmgr.sessions.cache import SessionCache
from tlsmgr.sessions.store import Store, StoreError
from tlsmgr.stats import INDEX
from tlsmgr.wire import Malformed, Remark, RequestReader, WakeUp, read_whole

BOOT_ERROR = 3  # exit status: not even started, no use in trying again
DEFECT = 1  # exit status: a traceback is in the log

ACCEPT_BURST = 8  # connections accepted before the clients at hand are served
ACCEPT_PAUSE = 1.0  # seconds without accepting when descriptors have run out
NANOSECONDS = 1_000_000_000

_CONNECTIONS, _WAKEUPS, _MALFORMED = INDEX["connections"], INDEX["wakeups"], INDEX["malformed"]


class Pipes(NamedTuple):
    """A worker's ends: ``lifeline`` closes when the parent goes, ``bell`` wakes the parent."""

    lifeline: int
    bell: int


def main(heritage: Heritage, slot: int, pipes: Pipes) -> int:
    """Be a worker in ``slot``, right after the fork; returns the exit status."""
    try:
        worker = _boot(heritage, slot, pipes)
    except Exception as bug:
        log.traceback(bug)
        return BOOT_ERROR
    try:
        worker.run()
    except Exception as bug:
        log.traceback(bug)
        return DEFECT
    return 0


def _boot(heritage: Heritage, slot: int, pipes: Pipes) -> Worker:
    _close_all_but(heritage.descriptors() | heritage.directories() | set(pipes))
    context = make_context(heritage, slot)
    for directory in heritage.directories():
        os.close(directory)
    return Worker(heritage, slot, pipes, context)


def make_context(heritage: Heritage, slot: int) -> Context:
    """Open the caches; what requests are handled with, for the process of this slot."""
    heritage.pool.attach(slot)
    heritage.ticket_keys.attach(slot)
    caches = {plan.rules.cache_type.encode(): _open_cache(plan) for plan in heritage.caches}
    return Context(
        {name: CacheType(t, caches.get(name)) for name, t in heritage.timeouts.items()},
        heritage.ticket_keys,
        heritage.pool,
        heritage.stats.row(slot),
    )


def _close_all_but(kept: set[int]) -> None:
    start = 3
    for descriptor in sorted(d for d in kept if d >= start):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _open_cache(plan: CachePlan) -> SessionCache:
    store = None
    if plan.file is not None:
        try:
            store = Store(plan.file)
        except StoreError as error:
            log.warning(f"{plan.rules.cache_type} TLS session cache: {error}")
            plan.shared.report_damage()
    return SessionCache(plan.rules, plan.shared, store)


class Worker:
    """The event loop."""

    def __init__(self, heritage: Heritage, slot: int, pipes: Pipes, context: Context) -> None:
        self._heritage = heritage
        self._slot = slot
        self._pipes = pipes
        self._context = context
        self._epoll = select.epoll()
        self._clients = Clients(self._epoll)
        self._listeners = {listener.fileno(): listener for listener in heritage.listeners}
        self._deferred: list[tuple[Client, Deferred]] = []
        self._unread: list[Client] = []  # they sent more than was looked at so far
        self._accepts_again = 0.0  # time.monotonic() until which no descriptor is to be had
        self._stopping = False

    def run(self) -> None:
        """Serve until told to stop."""
        signal.signal(signal.SIGTERM, self._stop)
        self._epoll.register(self._pipes.lifeline, select.EPOLLIN)
        self._listen()
        self._heritage.vital.beat(self._slot, time.monotonic())
        self.ring()
        while not self._stopping:
            self._turn(0.0 if self._unread else self._heritage.heartbeat)
        self._turn(0.0)
        self._clients.close_all()
        for cache_type in self._context.cache_types.values():
            if cache_type.cache is not None:
                cache_type.cache.close()

    def ring(self) -> None:
        """Have the parent look at this worker."""
        with contextlib.suppress(OSError):
            os.write(self._pipes.bell, b"!")

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _turn(self, timeout: float) -> None:
        """Wait for events and serve them; at the end carry out what was put off."""
        try:
            events = self._epoll.poll(timeout)
        except InterruptedError:
            return
        now = time.monotonic()
        self._heritage.vital.beat(self._slot, now)
        unread, self._unread = self._unread, []
        for client in unread:
            client.waits = False
            self._read_requests(client)
            self._clients.note_progress(client, now)
        find = self._clients.get
        for fd, _ in events:
            found = find(fd)
            if found is not None:
                self._serve(found, now)
            else:
                self._notice(fd)
        if self._deferred or self._has_expired():
            self._settle()
        self._give_up_overdue(now)

    def _notice(self, fd: int) -> None:
        """Something other than a client became readable."""
        listener = self._listeners.get(fd)
        if listener is not None:
            self._accept(listener)
        elif fd == self._pipes.lifeline:
            self._stop()

    # Connections.

    def _listen(self) -> None:
        for fd in self._listeners:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._accepts_again = 0.0

    def _stop_listening(self) -> None:
        for fd in self._listeners:
            self._epoll.unregister(fd)
        self._accepts_again = time.monotonic() + ACCEPT_PAUSE

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_BURST):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                break
            except OSError as error:
                log.error(f"accept connection: {error.strerror}")
                self._stop_listening()
                return
            self._context.counts[_CONNECTIONS] += 1
            self._clients.welcome(connection)
        self._epoll.unregister(listener.fileno())
        self._epoll.register(listener.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _give_up_overdue(self, now: float) -> None:
        if self._accepts_again and now >= self._accepts_again:
            self._listen()
        for client in self._clients.overdue(now - self._heritage.client_timeout):
            log.warning(f"timeout on {self._heritage.source}")
            self._clients.drop(client)

    # Requests.

    def _serve(self, client: Client, now: float) -> None:
        """Read one segment. It nearly always is one request, which is then answered right here."""
        if client.waits:
            return  # what it sent before comes first
        if client.output:
            if self._clients.send_rest(client) and client.reader is not None:
                self._read_requests(client)
            self._clients.note_progress(client, now)
            return
        segment = self._clients.read(client)
        if segment is None:
            return
        if client.reader is None:
            request = read_whole(segment)
            if request is not None:
                self._answer(client, handle(self._context, request, self._time()))
                if client.output:
                    self._clients.note_progress(client, now)
                return
            client.reader = RequestReader(self._heritage.source)
        if segment:
            client.reader.receive(segment)
            self._read_requests(client)
        else:
            self._end(client, client.reader)
        self._clients.note_progress(client, now)

    def _time(self) -> int:
        """The time of day in whole seconds, stirred into the pool with every request."""
        now = time.time_ns()
        self._context.pool.note_time(now)
        return now // NANOSECONDS

    def _answer(self, client: Client, reply: bytes | Deferred) -> None:
        if isinstance(reply, bytes):
            self._clients.send(client, reply)
        else:
            client.waits = True
            self._deferred.append((client, reply))

    def _read_requests(self, client: Client) -> None:
        """Serve what the client's reader holds, until a reply is stuck or has to wait."""
        reader = client.reader
        while reader is not None and not client.output and not client.waits:
            if not self._clients.is_open(client):
                return
            event = reader.next_event()
            if event is None:
                if reader.is_idle:
                    client.reader = None
                return
            if isinstance(event, Malformed):
                self._refuse(client, event)
            elif isinstance(event, Remark):
                log.warning(event.text)
            elif isinstance(event, WakeUp):
                self._context.counts[_WAKEUPS] += 1
                self._clients.drop(client)
            else:
                self._answer(client, handle(self._context, event, self._time()))

    def _refuse(self, client: Client, malformed: Malformed) -> None:
        self._context.counts[_MALFORMED] += 1
        log.warning(malformed.complaint)
        self._clients.send(client, refuse(malformed))
        if malformed.final:
            self._clients.drop(client)

    def _end(self, client: Client, reader: RequestReader) -> None:
        """The peer will send no more; half a request still gets the reply that it deserves."""
        malformed = reader.end_of_input()
        if malformed is not None:
            self._refuse(client, malformed)
        self._clients.drop(client)

    # Changes.

    def _has_expired(self) -> bool:
        types = self._context.cache_types.values()
        return any(t.cache is not None and t.cache.has_expired for t in types)

    def _settle(self) -> None:
        deferred, self._deferred = self._deferred, []
        replies = settle(self._context, [item for _, item in deferred], int(time.time()))
        for (client, _), reply in zip(deferred, replies, strict=True):
            client.waits = client.reader is not None
            if self._clients.is_open(client):
                self._clients.send(client, reply)
                if client.waits:
                    self._unread.append(client)
