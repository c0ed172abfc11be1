"""worker - one process of many that answer clients: accept, read, handle, write.

A worker is an event loop over its clients. A turn of it reads one segment of each client that sent
something, answers lookups and the like at once, all seeds together with one extract at the turn's
end, and then carries out all updates and deletes, as one transaction a cache, before they are
answered. No request makes a disk wait, and no client waits for another one's bytes.

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
from tlsmgr.processes import boot
from tlsmgr.processes.clients import Client, Clients
from tlsmgr.processes.heritage import Heritage
from tlsmgr.service import Context, Deferred, deal, handle, refuse, settle
from tlsmgr.stats import INDEX
from tlsmgr.wire import Malformed, Remark, RequestReader, Seed, WakeUp, read_whole

BOOT_ERROR = 3  # exit status: not even started, no use in trying again
DEFECT = 1  # exit status: a traceback is in the log

ACCEPT_BURST = 8  # connections accepted before the clients at hand are served
CHECK_INTERVAL = 1.0  # seconds between two looks at clients with half-done business
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
    boot.close_all_but(heritage.descriptors() | heritage.directories() | set(pipes))
    context = boot.make_context(heritage, slot)
    for directory in heritage.directories():
        os.close(directory)
    return Worker(heritage, slot, pipes, context)


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
        self._seeds: list[tuple[Client, Seed]] = []
        self._unread: list[Client] = []  # they sent more than was looked at so far
        self._next_check = 0.0  # time.monotonic()
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
        """Wait for events and serve them; at the end answer what is answered together."""
        try:
            events = self._epoll.poll(timeout)
        except InterruptedError:
            return
        now = time.monotonic()
        self._heritage.vital.beat(self._slot, now)
        if self._unread:
            self._resume(now)
        find = self._clients.get
        for fd, _ in events:
            client = find(fd)
            if client is not None:
                self._serve(client, now)
            else:
                self._notice(fd)
        if self._seeds:
            self._deal()
        self._settle()
        if now >= self._next_check:
            self._check_clients(now)

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

    def _check_clients(self, now: float) -> None:
        """Once a second: accept again after a pause, and give up those that keep us waiting."""
        self._next_check = now + CHECK_INTERVAL
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

    def _answer(self, client: Client, reply: bytes | Seed | Deferred) -> None:
        if isinstance(reply, bytes):
            self._clients.send(client, reply)
            return
        client.waits = True
        if isinstance(reply, Seed):
            self._seeds.append((client, reply))
        else:
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

    # The end of a turn.

    def _deal(self) -> None:
        waiting, self._seeds = self._seeds, []
        replies = deal(self._context, [seed for _, seed in waiting])
        for (client, _), reply in zip(waiting, replies):
            self._reply_to_waiting(client, reply)

    def _settle(self) -> None:
        """After the seeds, as the writers' lock of a cache may have to be waited for."""
        expired = False
        for cache in self._context.caches:
            cache.end_reading()
            expired = expired or bool(cache.expired)
        if not (self._deferred or expired):
            return
        waiting, self._deferred = self._deferred, []
        replies = settle(self._context, [item for _, item in waiting], int(time.time()))
        for (client, _), reply in zip(waiting, replies):
            self._reply_to_waiting(client, reply)

    def _reply_to_waiting(self, client: Client, reply: bytes) -> None:
        client.waits = client.reader is not None
        if self._clients.is_open(client):
            self._clients.send(client, reply)
            if client.waits:
                self._unread.append(client)

    def _resume(self, now: float) -> None:
        """Go on with clients that had sent more requests than one when their turn ended."""
        unread, self._unread = self._unread, []
        for client in unread:
            client.waits = False
            if self._clients.is_open(client):
                self._read_requests(client)
                self._clients.note_progress(client, now)
