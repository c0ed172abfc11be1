"""worker - one process of many that answer clients: accept, read, handle, write.

A worker is an event loop over its clients. A turn of it reads one segment of each client that sent
something, answers lookups and the like at once, all seeds together with one extract at the turn's
end, and then carries out all updates and deletes, as one transaction a cache, before they are
answered. No request makes a disk wait, and no client waits for another one's bytes.

Ends after the current iteration: when the parent has gone (parent_alive_fd reports the end of the
pipe, kill -9 included), and on SIGTERM. A defect of ours ends it with a traceback in the log and
status 1; what keeps it from serving at all with status BOOT_ERROR. A cache that can't be opened is
a warning. It holds no lock between iterations, and no descriptor that is not in ``Inherited``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.processes import setup
from tlsmgr.processes.connections import Client, Clients
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.listeners import Listeners
from tlsmgr.service import Context, Deferred, answer_seeds, commit_changes, handle, refuse
from tlsmgr.stats import INDEX
from tlsmgr.wire import InputWarning, Malformed, Request, RequestReader, Seed, WakeUp, read_whole

BOOT_ERROR = 3  # exit status: not even started, no use in trying again
DEFECT = 1  # exit status: a traceback is in the log

CHECK_INTERVAL = 1.0  # seconds between two looks at what no event tells of
REQUESTS_AT_ONCE = 16  # of one client in a turn
MOST_MISTAKES = 100  # malformed requests of one client
NANOSECONDS = 1_000_000_000

_CONNECTIONS, _WAKEUPS, _MALFORMED = INDEX["connections"], INDEX["wakeups"], INDEX["malformed"]


class Pipes(NamedTuple):
    """A worker's pipe ends: ``parent_alive_fd`` reads EOF when the parent is gone."""

    parent_alive_fd: int
    wakeup_fd: int


def main(inherited: Inherited, slot: int, pipes: Pipes) -> int:
    """Be a worker in ``slot``, right after the fork; returns the exit status."""
    try:
        worker = _boot(inherited, slot, pipes)
    except Exception as bug:
        log.traceback(bug)
        return BOOT_ERROR
    try:
        worker.run()
    except Exception as bug:
        log.traceback(bug)
        return DEFECT
    return 0


def _boot(inherited: Inherited, slot: int, pipes: Pipes) -> Worker:
    setup.name_process("tlsmgr-worker")
    setup.close_all_but(inherited.descriptors() | inherited.directories() | set(pipes))
    context = setup.make_context(inherited, slot)
    for directory in inherited.directories():
        os.close(directory)
    return Worker(inherited, slot, pipes, context)


class Worker:
    """The event loop."""

    def __init__(self, inherited: Inherited, slot: int, pipes: Pipes, context: Context) -> None:
        self._inherited = inherited
        self._slot = slot
        self._pipes = pipes
        self._context = context
        self._epoll = select.epoll()
        self._clients = Clients(self._epoll)
        self._listeners = Listeners(self._epoll, inherited.listeners)
        self._deferred: list[tuple[Client, Deferred]] = []
        self._seeds: list[tuple[Client, Seed]] = []
        self._unread: list[Client] = []  # they sent more than was looked at so far
        self._next_check = 0.0  # time.monotonic()
        self._stopping = False

    def run(self) -> None:
        """Serve until told to stop."""
        self._catch_signals()
        self._epoll.register(self._pipes.parent_alive_fd, select.EPOLLIN)
        self._listeners.listen()
        self._inherited.scoreboard.beat(self._slot, time.monotonic(), 0)
        self._ring()
        while not self._stopping:
            self._iterate(self._patience())
        self._listeners.ignore()
        self._iterate(0.0)
        self._clients.close_all()
        for cache in self._context.caches:
            cache.close()

    def _catch_signals(self) -> None:
        """SIGTERM ends the wait for events, which Python would take up again by itself."""
        alarm, end = os.pipe()
        os.set_blocking(end, False)
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        self._epoll.register(alarm, select.EPOLLIN)

    def _ring(self) -> None:
        """Have the parent look at this worker."""
        with contextlib.suppress(OSError):
            os.write(self._pipes.wakeup_fd, b"!")

    def _patience(self) -> float:
        """How many seconds to wait for events."""
        if self._unread:
            return 0.0
        return self._listeners.patience(time.monotonic(), self._inherited.heartbeat)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _iterate(self, timeout: float) -> None:
        """Wait for events and serve them; at the end answer what is answered together."""
        events = self._epoll.poll(timeout)
        now = time.monotonic()
        self._inherited.scoreboard.beat(self._slot, now, len(self._clients))
        self._listeners.resume(now)
        if self._unread:
            self._resume(now)
        self._serve(events, now)
        if self._seeds:
            self._deal()
        self._settle()
        if now >= self._next_check:
            self._check(now)

    def _handle_fd(self, fd: int, now: float) -> None:
        """Something other than a client can be read."""
        if fd in self._listeners:
            self._accept(fd, now)
        elif fd == self._pipes.parent_alive_fd:
            self._stop()

    def _accept(self, fd: int, now: float) -> None:
        if self._inherited.scoreboard.is_crowded(self._slot) and self._listeners.back_off(now):
            return
        for connection in self._listeners.accept(fd, now):
            self._context.counts[_CONNECTIONS] += 1
            self._clients.welcome(connection)

    def _check(self, now: float) -> None:
        """Once a second: look for connections left over, and give up clients that don't go on."""
        self._next_check = now + CHECK_INTERVAL
        self._listeners.rearm()
        for client in self._clients.overdue(now - self._inherited.client_timeout):
            log.warning(f"timeout on {self._inherited.source}")
            self._clients.drop(client)

    # Requests.

    def _serve(self, events: list[tuple[int, int]], now: float) -> None:
        """Read one segment of each. It nearly always is one request, and answered right here."""
        find, read, answer = self._clients.get, self._clients.read, self._answer
        for fd, _ in events:
            client = find(fd)
            if client is None:
                self._handle_fd(fd, now)
            elif client.waits or client.output or client.reader is not None:
                self._go_on(client, now)
            else:
                segment = read(client)
                request = read_whole(segment) if segment else None
                if request is not None:
                    answer(client, request)
                elif segment is not None:
                    self._feed(client, segment, now)

    def _answer(self, client: Client, request: Request) -> None:
        """Stir the time of day, and handle the request; some replies wait for the turn's end."""
        now = time.time_ns()
        self._context.pool.note_time(now)
        reply = handle(self._context, request, now // NANOSECONDS)
        if isinstance(reply, bytes):
            self._clients.send(client, reply)
        else:
            client.waits = True
            if isinstance(reply, Seed):
                self._seeds.append((client, reply))
            else:
                self._deferred.append((client, reply))

    def _go_on(self, client: Client, now: float) -> None:
        """An event at a client with half-done business."""
        if client.waits:
            return  # what it sent before comes first
        if client.output:
            if self._clients.send_rest(client) and client.reader is not None:
                self._read_requests(client)
            self._clients.note_progress(client, now)
            return
        segment = self._clients.read(client)
        if segment is not None:
            self._feed(client, segment, now)

    def _feed(self, client: Client, segment: bytes, now: float) -> None:
        """A segment that is not just one request; empty at the end of input."""
        if not segment:
            self._end(client)
            return
        if client.reader is None:
            client.reader = RequestReader(self._inherited.source)
        client.reader.receive(segment)
        self._read_requests(client)
        self._clients.note_progress(client, now)

    def _read_requests(self, client: Client) -> None:
        """Serve what the client's reader holds, until a reply is stuck or has to wait."""
        for served in range(REQUESTS_AT_ONCE + 1):
            reader = client.reader
            if reader is None or client.output or client.waits or not self._clients.is_open(client):
                return
            if served == REQUESTS_AT_ONCE:
                break
            event = reader.next_event()
            if event is None:
                if reader.is_idle:
                    client.reader = None
                return
            if isinstance(event, Malformed):
                self._refuse(client, event)
            elif isinstance(event, InputWarning):
                log.warning(event.text)
            elif isinstance(event, WakeUp):
                self._context.counts[_WAKEUPS] += 1
                self._clients.drop(client)
            else:
                self._answer(client, event)
        client.waits = True  # others have sent something too: the rest is for the next turn
        self._unread.append(client)

    def _refuse(self, client: Client, malformed: Malformed) -> None:
        self._context.counts[_MALFORMED] += 1
        log.warning(malformed.complaint)
        self._clients.send(client, refuse(malformed))
        client.mistakes += 1
        if client.mistakes == MOST_MISTAKES:
            log.warning(f"too many malformed requests from {self._inherited.source}: disconnected")
        if malformed.final or client.mistakes == MOST_MISTAKES:
            self._clients.drop(client)

    def _end(self, client: Client) -> None:
        """The peer will send no more; half a request still gets the reply that it deserves."""
        ending = client.reader.end_of_input() if client.reader is not None else None
        if isinstance(ending, Malformed):
            self._refuse(client, ending)
        elif ending is not None:
            log.warning(ending.text)
        self._clients.drop(client)

    # The end of a turn.

    def _deal(self) -> None:
        waiting, self._seeds = self._seeds, []
        replies = answer_seeds(self._context, [seed for _, seed in waiting])
        self._reply(waiting, replies)

    def _settle(self) -> None:
        """After the seeds, as the writers' lock of a cache may have to be waited for."""
        for cache in self._context.caches:
            cache.end_reading()
        if not (self._deferred or any(cache.expired for cache in self._context.caches)):
            return
        waiting, self._deferred = self._deferred, []
        replies = commit_changes(self._context, [item for _, item in waiting], int(time.time()))
        self._reply(waiting, replies)

    def _reply(self, waiting: Sequence[tuple[Client, object]], replies: list[bytes]) -> None:
        """To clients that wait, and are open: none is dropped before it got its reply."""
        send = self._clients.send
        for (client, _), reply in zip(waiting, replies):
            send(client, reply)
            if client.reader is None:
                client.waits = False
            else:  # it waits on, for the next turn
                self._unread.append(client)

    def _resume(self, now: float) -> None:
        """Go on with clients that had sent more requests than one when their turn ended."""
        unread, self._unread = self._unread, []
        for client in unread:
            client.waits = False
            self._read_requests(client)
            self._clients.note_progress(client, now)
