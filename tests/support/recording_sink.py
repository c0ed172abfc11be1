"""recording_sink - a mail server that accepts all, and records what each TLS client shows it.

That is what anybody sees on the way: the ticket in the clear part of the handshake (RFC 8446,
4.2.11). It offers TLS 1.3 alone, and sends two tickets after a new handshake, as OpenSSL does.

    with RecordingSink() as sink:
        ...                # deliver to sink.port
        sink.tickets       # of all connections that offered one
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
from pathlib import Path

from support.accepting_server import AcceptingServer
from support.postfix_instance import self_signed

PATIENCE = 30.0
PRE_SHARED_KEY = 41  # the extension
PAUSE = 0.05  # seconds of a delivery, so that several are under way


class RecordingSink(AcceptingServer):
    """The server; each connection is a thread of its own."""

    def __init__(self) -> None:
        self.tickets: list[bytes] = []
        self.connections = self.resumed = 0
        self._lock = threading.Lock()
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        super().__init__(listener)
        self.port: int = listener.getsockname()[1]
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        with tempfile.TemporaryDirectory() as directory:
            chain = Path(directory) / "chain.pem"
            chain.write_bytes(self_signed("sink.test"))
            self._context.load_cert_chain(chain)

    def take(self, connection: socket.socket) -> None:
        """Have a thread serve it."""
        connection.settimeout(PATIENCE)
        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"220 sink.test ESMTP\r\n")
            _converse(connection, b"250-sink.test\r\n250 STARTTLS\r\n")
            ticket = offered_ticket(client_hello(connection))
            with self._context.wrap_socket(connection, server_side=True) as secure:
                with self._lock:
                    self.connections += 1
                    self.resumed += bool(secure.session_reused)
                    if ticket is not None:
                        self.tickets.append(ticket)
                _converse(secure, b"250 sink.test\r\n")


def _converse(connection: socket.socket, greeting: bytes) -> None:
    """Answer commands until STARTTLS, or the client's end."""
    with connection.makefile("rb", buffering=0) as lines:
        while line := lines.readline():
            command = line.strip().upper()
            if command == b"DATA":
                connection.sendall(b"354 go on\r\n")
                while lines.readline() not in (b".\r\n", b""):
                    pass
                threading.Event().wait(PAUSE)
            greets = command.startswith(b"EHLO")
            connection.sendall(greeting if greets else b"220 ok\r\n" if _is_tls(command) else _OK)
            if _is_tls(command) or command == b"QUIT":
                return


_OK = b"250 ok\r\n"


def _is_tls(command: bytes) -> bool:
    return command == b"STARTTLS"


def client_hello(connection: socket.socket) -> bytes:
    """Return the first record that the client sends, and leave it unread."""
    size = 5
    while True:
        data = connection.recv(size, socket.MSG_PEEK | socket.MSG_WAITALL)
        if not data or len(data) < size:
            raise OSError("no ClientHello")
        if size > 5:
            return data
        size += int.from_bytes(data[3:5], "big")


def offered_ticket(record: bytes) -> bytes | None:
    """Return the first identity in the extension pre_shared_key, None without one."""
    at = 5 + 4 + 2 + 32  # record, handshake, version, random
    at += 1 + record[at]  # session id
    at += 2 + int.from_bytes(record[at : at + 2], "big")  # cipher suites
    at += 1 + record[at]  # compression methods
    at += 2  # length of all extensions
    while at < len(record):
        kind, length = record[at : at + 2], int.from_bytes(record[at + 2 : at + 4], "big")
        if int.from_bytes(kind, "big") == PRE_SHARED_KEY:
            size = int.from_bytes(record[at + 6 : at + 8], "big")
            return record[at + 8 : at + 8 + size]
        at += 4 + length
    return None
