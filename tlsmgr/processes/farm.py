"""farm - the farm process: it alone talks to the network, for all workers.

It is a program of its own (exec), started by ``farm_keeper`` outside of the jail as mail_owner, so
nothing of the daemon's memory is in it: no pool, no ticket key, no secret of the farm. Its
configuration comes through a pipe: the engines, with their passwords, and the descriptors that it
inherits, one socket for each slot of a worker and one for the keeper. Sessions pass through it as
the workers sealed them; those of a `memcache:` table are in the clear, as they are in memcached.

One loop collects the messages of all workers and hands them to the ``Lane`` of their engine; it
never waits for an engine, and for no worker: answers that are not read wait in an ``Outbox``.

To the keeper it sends its log lines and, when something changed and at least once a second, its
state: which engines may be asked, and how many writes were dropped. It ends when the keeper does.
SIGTERM is ignored, because master(8) sends it to the whole process group. A defect is a traceback
in the log and status 1. Modules of client libraries are imported here and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.farm.backlog import Write
from tlsmgr.farm.engine import Settings
from tlsmgr.farm.messages import (
    LARGEST_DATAGRAM,
    Answer,
    Ask,
    Message,
    Store,
    Writer,
    messages_in,
    serial_of,
)
from tlsmgr.processes.farm_lane import Lane, Lookup, Result
from tlsmgr.processes.farm_outbox import Outbox
from tlsmgr.processes.names import name_process

DEFECT = 1  # exit status: a traceback is in the log
BEAT_INTERVAL = 1.0  # seconds between two messages to the keeper, at most
DATAGRAMS_AT_ONCE = 64  # of one worker in an iteration
MOST_MEMORY = 80 << 20  # bytes; 30 are in use, and the queues take some more
SWITCH_INTERVAL = 0.0005  # seconds; a thread that got an answer must not wait for the loop


class Configuration(NamedTuple):
    """What the keeper passes on: engines, and the descriptors of the workers' ends and its own."""

    engines: tuple[Settings, ...]
    ends: tuple[int, ...]
    keeper: int

    def to_bytes(self) -> bytes:
        """Return it for a pipe."""
        return json.dumps(self).encode()


def configuration(data: bytes) -> Configuration:
    """Return what ``to_bytes`` was made of."""
    engines, ends, keeper = json.loads(data)
    return Configuration(tuple(Settings(*each) for each in engines), tuple(ends), keeper)


class KeeperLog:
    """The log of this process: lines go to the keeper, which has the daemon's."""

    def __init__(self, keeper: socket.socket) -> None:
        self._keeper = keeper

    def write(self, severity: log.Severity, tag: str, text: bytes) -> None:
        """Send one line, or drop it."""
        line = ["log", *severity, text.decode("utf-8", "replace")]
        with contextlib.suppress(OSError):
            self._keeper.send(json.dumps(line).encode())

    def descriptors(self) -> tuple[int, ...]:
        """Return that of the keeper's socket."""
        return (self._keeper.fileno(),)


def main(configuration_fd: int) -> int:
    """Entry point of the program; return the exit status."""
    name_process("tlsmgr-farm")
    sys.setswitchinterval(SWITCH_INTERVAL)
    _limit_memory()
    with open(configuration_fd, "rb") as pipe:
        settings = configuration(pipe.read())
    keeper = socket.socket(fileno=settings.keeper)
    keeper.setblocking(False)
    log.use(KeeperLog(keeper), keep_utf8=True)
    try:
        FarmProcess(settings, keeper).run()
    except Exception as bug:
        log.traceback(bug)
        return DEFECT
    return 0


def _limit_memory() -> None:
    """Have the thread that reads fail with MemoryError, if an engine sends without end."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or hard > MOST_MEMORY:
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, hard))


class FarmProcess:
    """The loop."""

    def __init__(self, settings: Configuration, keeper: socket.socket) -> None:
        self._keeper = keeper
        self._ends = {fd: socket.socket(fileno=fd) for fd in settings.ends}
        self._outboxes = {fd: Outbox(end) for fd, end in self._ends.items()}
        self._woken_fd, wake_fd = os.pipe()
        now, draw = time.monotonic(), random.Random().random
        self._lanes = [Lane(each, wake_fd, now, draw) for each in settings.engines]
        self._buffer = memoryview(bytearray(LARGEST_DATAGRAM))
        self._writers: dict[tuple[int, int], Writer] = {}
        self._reported: list[object] = []
        self._report_due = 0.0
        self._poll = select.epoll()
        for fd in (self._woken_fd, wake_fd, *self._ends):
            os.set_blocking(fd, False)
        for fd in (keeper.fileno(), self._woken_fd, *self._ends):
            self._poll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Serve until the keeper ends."""
        while True:
            self._report(time.monotonic())
            for fd, event in self._poll.poll(self._delay(time.monotonic())):
                if fd == self._keeper.fileno():
                    return  # it sends nothing: this is its end
                if fd == self._woken_fd:
                    os.read(fd, 4096)
                elif event & select.EPOLLOUT:
                    self._send_rest(fd)
                else:
                    self._receive(fd, time.monotonic())
            for lane in self._lanes:
                self._answer(lane.run(time.monotonic()))
            self._send()

    def _delay(self, now: float) -> float:
        return max(0.0, min(self._report_due - now, *(lane.due(now) for lane in self._lanes)))

    def _receive(self, fd: int, now: float) -> None:
        """Take what a worker has sent."""
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                size = self._ends[fd].recv_into(self._buffer)
            except BlockingIOError:
                return
            if not size:
                self._poll.unregister(fd)
                return
            datagram = self._buffer[:size]
            serial = serial_of(datagram)
            for message in messages_in(datagram):
                self._take(fd, serial, message, now)

    def _take(self, fd: int, serial: int, message: Message, now: float) -> None:
        lane = self._lanes[message.lane]
        if isinstance(message, Ask):
            lookup = Lookup(fd, serial, message.number, message.keys)
            self._answer(lane.add_lookup(lookup))
        elif isinstance(message, Store):
            lane.add_write(Write((message.key,), message.value, now + message.life))
        else:
            lane.add_write(Write(message.keys, None, 0.0))

    def _answer(self, results: Sequence[Result]) -> None:
        for lookup, value in results:
            at = lookup.end, lookup.serial
            if at not in self._writers:
                self._writers[at] = Writer(lookup.serial)
            self._writers[at].add(Answer(lookup.number, *value))

    def _send(self) -> None:
        """Send the answers, behind those that wait already."""
        for (fd, _), writer in self._writers.items():
            outbox = self._outboxes[fd]
            waits = bool(outbox)
            for datagram in writer.take():
                outbox.add(datagram.data)
            if not waits:
                outbox.send()
                if outbox:
                    self._poll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        self._writers.clear()

    def _send_rest(self, fd: int) -> None:
        """Send what waits for a worker that reads again."""
        self._outboxes[fd].send()
        if not self._outboxes[fd]:
            self._poll.modify(fd, select.EPOLLIN)

    def _report(self, now: float) -> None:
        """Send the state to the keeper."""
        state: list[object] = [
            "state",
            [lane.is_open for lane in self._lanes],
            sum(lane.dropped for lane in self._lanes),
        ]
        if state != self._reported or now >= self._report_due:
            self._reported, self._report_due = state, now + BEAT_INTERVAL
            with contextlib.suppress(OSError):
                self._keeper.send(json.dumps(state).encode())


if __name__ == "__main__":
    status = main(int(sys.argv[1]))
    os._exit(status)  # not waiting for threads
