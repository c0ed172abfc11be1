"""generator - the clients of a tlsmgr in Python, for machines without a C compiler.

    python -m bench.generator PLAN SOCKET CONNECTIONS NANOSECONDS RANDOM

Does what generator.c does, which says what that is, at several times the CPU time per request. So
it is itself the limit of most measurements, and the report says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import signal
import socket
import sys
import time
from collections import Counter, deque
from pathlib import Path

from bench.histogram import Histogram, bucket_of
from bench.loads import Exchange
from bench.plan import Plan, read_plan

ANNOUNCEMENT = b"protocol\0tlsmgr_protocol\0\0"
SECOND = 1_000_000_000
GRACE = 60  # seconds beyond the load
SHOWN_BYTES = 24  # of the first wrong reply
RECEIVE_SIZE = 65536


class Client:
    """One client; ``since`` is when it began to wait for the reply to ``exchange``."""

    __slots__ = ("exchange", "greeted", "key", "last", "left", "received", "since", "sock", "turn")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.greeted = False
        self.turn = self.left = self.key = self.since = 0
        self.exchange: Exchange | None = None
        self.received = self.last = b""


class Generator:
    """All clients, on one epoll object."""

    def __init__(self, plan: Plan, path: str, connections: int, number: int) -> None:
        self._plan = plan
        self._path = path
        self._random = random.Random(number)
        self._epoll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._clients = [Client() for _ in range(connections)]
        self._line = deque(self._clients)
        self._given = self._greeted = 0
        self._running = False
        self.counts = dict.fromkeys(("requests", "wrong", "lost", "refused"), 0)
        self.first_wrong = b""
        self.histogram: Histogram = Counter()

    def connect(self, limit: int) -> None:
        """Connect all clients; SystemExit when that takes longer than until ``limit``."""
        self._connect_line()
        while self._greeted < len(self._clients):
            self._iterate(limit)
            if time.monotonic_ns() > limit:
                sys.exit(f"generator: {self._greeted} of {len(self._clients)} clients were let in")

    def run(self, start: int, limit: int) -> None:
        """Apply the load until ``limit``, in nanoseconds of the monotonic clock, or to its end."""
        self._running = True
        for client in self._clients:
            self._begin(client, start)
        whole = len(self._plan.steps[0].exchanges) if self._plan.once else -1
        while time.monotonic_ns() < limit and self.counts["requests"] != whole:
            self._iterate(limit)

    def waiting(self, now: int) -> list[int]:
        """For how many nanoseconds each client has waited for a reply that is due."""
        return [now - client.since for client in self._clients if client.exchange is not None]

    def _iterate(self, limit: int) -> None:
        left = max(0.0, (limit - time.monotonic_ns()) / SECOND)
        for fd, _ in self._epoll.poll(0.001 if self._line else left):
            self._receive(self._by_fd[fd])
        self._connect_line()

    # Connections.

    def _connect_line(self) -> None:
        while self._line:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                sock.connect(self._path)
            except BlockingIOError:
                self.counts["refused"] += 1
                sock.close()
                return
            except OSError as error:
                sys.exit(f"generator: connect: {error.strerror}")
            client = self._line.popleft()
            client.sock, client.greeted, client.received = sock, False, b""
            client.left = self._plan.per_connection
            self._by_fd[sock.fileno()] = client
            self._epoll.register(sock, select.EPOLLIN)

    def _hang_up(self, client: Client) -> None:
        if client.sock is not None:
            del self._by_fd[client.sock.fileno()]
            client.sock.close()
            client.sock = None
        self._line.append(client)

    # Requests.

    def _begin(self, client: Client, now: int) -> None:
        step = self._plan.steps[client.turn]
        if self._plan.once:
            if self._given == len(step.exchanges):
                client.exchange = None
                return
            client.key = self._given
            self._given += 1
        elif client.turn == 0:
            client.key = self._random.getrandbits(32)
        client.exchange = step.exchanges[client.key % len(step.exchanges)]
        client.since = now
        if client.sock is not None:
            self._transmit(client, client.sock)
        elif len(self._line) == 1:
            self._connect_line()

    def _transmit(self, client: Client, sock: socket.socket) -> None:
        assert client.exchange is not None
        client.received = b""
        request = client.exchange.head + client.exchange.tail
        with contextlib.suppress(OSError):
            if sock.send(request) == len(request):
                return
        self.counts["lost"] += 1
        self._hang_up(client)

    def _receive(self, client: Client) -> None:
        assert client.sock is not None
        try:
            data = client.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.counts["lost"] += 1
            self._hang_up(client)
            return
        client.received += data
        if not client.greeted:
            self._greet(client, client.sock)
        elif client.exchange is None:
            self._note_wrong(client)
        elif len(client.received) >= client.exchange.reply_length or data.endswith(b"\0\0"):
            self._finish(client, client.exchange, time.monotonic_ns())

    def _greet(self, client: Client, sock: socket.socket) -> None:
        if len(client.received) < len(ANNOUNCEMENT):
            return
        if client.received != ANNOUNCEMENT:
            sys.exit("generator: the server does not announce itself as tlsmgr")
        client.greeted = True
        self._greeted += 1
        if self._running and client.exchange is not None:
            self._transmit(client, sock)

    def _finish(self, client: Client, exchange: Exchange, now: int) -> None:
        self.histogram[bucket_of(now - client.since)] += 1
        self.counts["requests"] += 1
        if not self._is_right(client, exchange):
            self._note_wrong(client)
        client.exchange = None
        client.turn = (client.turn + 1) % len(self._plan.steps)
        client.left -= 1
        if self._plan.per_connection and not client.left:
            self._hang_up(client)
        self._begin(client, now)

    def _is_right(self, client: Client, exchange: Exchange) -> bool:
        reply, want = client.received, exchange.want
        right = len(reply) == exchange.reply_length and reply.startswith(want)
        right = right and reply.startswith(exchange.want_tail, len(want))
        if right and self._plan.steps[client.turn].fresh:
            right = reply != client.last
            client.last = reply
        return right

    def _note_wrong(self, client: Client) -> None:
        if not self.counts["wrong"]:
            self.first_wrong = client.received[:SHOWN_BYTES]
        self.counts["wrong"] += 1


def main(arguments: list[str]) -> None:
    """Be a generator; SystemExit with one line for whatever is fatal."""
    path, connections, length, number = arguments[1], *map(int, arguments[2:5])
    signal.alarm(length // SECOND + GRACE)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    generator = Generator(read_plan(Path(arguments[0])), path, connections, number)
    generator.connect(time.monotonic_ns() + GRACE // 2 * SECOND)
    print("ready", flush=True)
    if not os.read(0, 1):
        sys.exit(1)
    cpu, start = time.process_time_ns(), time.monotonic_ns()
    generator.run(start, start + length)
    end = time.monotonic_ns()
    ages = generator.waiting(end)
    result = {
        **generator.counts,
        "elapsed": end - start,
        "cpu": time.process_time_ns() - cpu,
        "waiting": sum(age > SECOND for age in ages),
        "longest": max(ages, default=0),
        "first_wrong": generator.first_wrong.hex(),
        "histogram": generator.histogram,
    }
    print(json.dumps(result), flush=True)
    while os.read(0, 1):
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
