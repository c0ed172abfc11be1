"""control - the process that answers the control socket, at a low priority, for root and the owner.

One request a connection, as control_lines says. Work is done in pieces of about a millisecond, one
for each client in turn, and only for a client that takes its reply: a slow or stuck one costs
nobody else anything. Bounds: MOST_CLIENTS at once, LINE_LIMIT bytes of a request, OUTPUT_LIMIT
bytes of a reply that wait, and CLIENT_TIMEOUT seconds for a whole request, and for a client that
does not read; only LEAST_TIME when another one needs its place.

Who connects is asked of the kernel (SO_PEERCRED); others than root and the owner get one line that
says so. It ends when the parent ends, and on SIGTERM. A defect is a traceback in the log, status 1
and another such process. It answers no other socket, and workers do not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Generator

from tlsmgr import log
from tlsmgr.control_lines import LINE_LIMIT, OK_LINE, BadLine, error_line, parse
from tlsmgr.processes import setup, signals
from tlsmgr.processes.control_commands import Commands, Refused
from tlsmgr.processes.control_status import Facts
from tlsmgr.processes.inherited import Inherited

DEFECT = 1  # exit status: a traceback is in the log
NICENESS = 5  # workers get three times as much of a CPU that is short
BEAT_INTERVAL = 1.0  # seconds; the longest time between two iterations
MOST_CLIENTS = 16
CLIENT_TIMEOUT = 30.0  # seconds without progress
LEAST_TIME = 1.0  # the same, when there are MOST_CLIENTS and another one comes
ACCEPT_PAUSE = 0.1  # seconds, when descriptors have run out
SILENCE = 1.0  # seconds of work after which a client gets an empty line
OUTPUT_LIMIT = 1 << 16  # bytes that wait for a client before work for it goes on
ROOT = 0

_CREDENTIALS = struct.Struct("=3i")  # struct ucred: pid, uid, gid


def main(
    inherited: Inherited,
    slot: int,
    listener: socket.socket,
    parent_alive_fd: int,
    owner: int,
    facts: Facts,
) -> int:
    """Entry point of the control process, called in the child after fork(); return its status."""
    try:
        setup.name_process("tlsmgr-control")
        setup.close_all_but(
            {listener.fileno(), parent_alive_fd, *log.descriptors()}
            | inherited.directories()
            | inherited.alarms()
        )
        with contextlib.suppress(OSError):  # a filter of system calls may refuse it
            os.nice(NICENESS)
        inherited.pool.attach(slot)
        inherited.ticket_keys.attach(slot)
        Control(inherited, slot, listener, owner, facts).run(parent_alive_fd)
    except Exception as bug:
        log.traceback(bug)
        return DEFECT
    return 0


Reply = Generator[bytes, None, None]


class Client:
    """One connection: its request so far, then the reply that is being made and sent."""

    __slots__ = ("fd", "output", "reply", "request", "since")

    def __init__(self, fd: int, now: float) -> None:
        self.fd = fd
        self.request = b""
        self.reply: Reply | None = None  # None: the request is incomplete, or all is made
        self.output = b""
        self.since = now  # time.monotonic() of its last progress


class Control:
    """The event loop."""

    def __init__(
        self, inherited: Inherited, slot: int, listener: socket.socket, owner: int, facts: Facts
    ) -> None:
        self._scoreboard = inherited.scoreboard
        self._slot = slot
        self._listener = listener
        self._allowed = (ROOT, owner)
        self._commands = Commands(facts, inherited)
        self._clients: dict[int, Client] = {}
        self._epoll = select.epoll()
        self._stopping = False

    def run(self, parent_alive_fd: int) -> None:
        """Serve until the parent or SIGTERM ends it."""
        self._epoll.register(signals.wakeup_pipe(), select.EPOLLIN | select.EPOLLET)
        signal.signal(signal.SIGTERM, self._stop)
        self._epoll.register(parent_alive_fd, select.EPOLLIN)
        self._epoll.register(self._listener, select.EPOLLIN)
        while not self._stopping:
            events = self._epoll.poll(0.0 if self._working() else BEAT_INTERVAL)
            now = time.monotonic()
            self._scoreboard.beat(self._slot, now)
            for fd, event in events:
                self._handle(fd, event, now, parent_alive_fd)
            for client in self._working():
                self._work(client, now)
            self._drop_overdue(now)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _handle(self, fd: int, event: int, now: float, parent_alive_fd: int) -> None:
        client = self._clients.get(fd)
        if client is not None:
            self._serve(client, event, now)
        elif fd == self._listener.fileno():
            self._accept(now)
        elif fd == parent_alive_fd:
            self._stop()

    # Clients come and go.

    def _accept(self, now: float) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:
            time.sleep(ACCEPT_PAUSE)
            return
        connection.setblocking(False)
        refusal = self._refusal(connection, now)
        client = Client(connection.detach(), now)
        if refusal:
            with contextlib.suppress(OSError):
                os.write(client.fd, error_line(refusal))
                os.read(client.fd, LINE_LIMIT)  # what is left unread would reset the connection
            os.close(client.fd)
            return
        self._clients[client.fd] = client
        self._epoll.register(client.fd, select.EPOLLIN)

    def _refusal(self, connection: socket.socket, now: float) -> str:
        """Return why this peer is not served, "" if it is, perhaps in the place of another."""
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(data)
        if uid not in self._allowed:
            return f"permission denied: only root and user ID {self._allowed[1]} may use this"
        if len(self._clients) >= MOST_CLIENTS:
            slowest = min(self._clients.values(), key=lambda client: client.since)
            if now - slowest.since > LEAST_TIME:
                self._drop(slowest)
                return ""
            return f"too many control clients: {MOST_CLIENTS} are connected"
        return ""

    def _drop(self, client: Client) -> None:
        """Close the connection; what its reply holds open is closed as well."""
        del self._clients[client.fd]
        os.close(client.fd)
        reply, client.reply = client.reply, None
        if reply is not None:
            reply.close()

    def _drop_overdue(self, now: float) -> None:
        for client in list(self._clients.values()):
            if now - client.since > CLIENT_TIMEOUT:
                self._drop(client)

    # Requests and replies.

    def _serve(self, client: Client, event: int, now: float) -> None:
        if event & select.EPOLLOUT:
            self._send(client, now)
        elif client.reply is None and not client.output:
            self._read(client)
        elif event & (select.EPOLLHUP | select.EPOLLERR):
            self._drop(client)

    def _read(self, client: Client) -> None:
        try:
            data = os.read(client.fd, LINE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.request += data
        line, newline, _ = client.request.partition(b"\n")
        if newline and len(line) <= LINE_LIMIT:
            self._start_reply(client, self._answer(line))
        elif len(client.request) > LINE_LIMIT:
            text = f"the request is longer than {LINE_LIMIT} bytes"
            self._start_reply(client, _only(error_line(text)))

    def _start_reply(self, client: Client, reply: Reply) -> None:
        client.reply, client.request = reply, b""
        self._epoll.modify(client.fd, 0)  # nothing more is read; the end of the peer is reported

    def _answer(self, line: bytes) -> Reply:
        """Return the parts of a whole reply; an empty line while work has nothing to show."""
        spoke = time.monotonic()
        try:
            for part in self._commands.run(parse(line)):
                now = time.monotonic()
                kept_alive = not part and now - spoke >= SILENCE
                if part or kept_alive:
                    spoke = now
                yield b"\n" if kept_alive else part
        except (BadLine, Refused) as refusal:
            yield error_line(str(refusal))
        else:
            yield OK_LINE

    def _working(self) -> list[Client]:
        """Return the clients whose replies go on now."""
        return [
            client
            for client in self._clients.values()
            if client.reply is not None and len(client.output) < OUTPUT_LIMIT
        ]

    def _work(self, client: Client, now: float) -> None:
        """Make one part of a reply, and send what the client takes."""
        if client.fd not in self._clients or client.reply is None:
            return
        part = next(client.reply, None)
        if part is None:
            client.reply = None
        else:
            client.output += part
        if not client.output:
            client.since = now  # work that has nothing to say yet
        self._send(client, now)

    def _send(self, client: Client, now: float) -> None:
        try:
            sent = os.write(client.fd, client.output) if client.output else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return
        if sent:
            client.output, client.since = client.output[sent:], now
        if client.output:
            self._epoll.modify(client.fd, select.EPOLLOUT)
        elif client.reply is None:
            self._drop(client)
        else:
            self._epoll.modify(client.fd, 0)


def _only(line: bytes) -> Reply:
    yield line
