"""ticket_clients - mail clients that keep their TLS session, and come back with it."""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
TIMEOUT = 30.0  # seconds; limit for any reply on a loaded machine


class Visit(NamedTuple):
    """The session of a connection, and whether it was resumed."""

    session: ssl.SSLSession | None
    resumed: bool


class TicketClients:
    """Clients of the SMTP server on that port, each with a ticket of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._contexts = {name: _context(version) for name, version in VERSIONS.items()}
        self._sessions: list[tuple[str, ssl.SSLSession]] = []

    def collect(self, count: int) -> None:
        """Get that many tickets, of each version of TLS alternately."""
        for n in range(count):
            version = list(VERSIONS)[n % len(VERSIONS)]
            session, resumed = self._visit(version, None)
            assert session is not None
            assert session.has_ticket
            assert not resumed
            self._sessions.append((version, session))

    def accepted(self) -> float:
        """Come back with each ticket; return the part of them that is accepted."""
        resumed = [self._visit(*each).resumed for each in self._sessions]
        return sum(resumed) / len(resumed)

    def _visit(self, version: str, session: ssl.SSLSession | None) -> Visit:
        with socket.create_connection(("127.0.0.1", self._port), TIMEOUT) as plain:
            _hurry(plain)
            for line in (b"", b"EHLO client.test\r\n", b"STARTTLS\r\n"):
                _talk(plain, line)
            with self._contexts[version].wrap_socket(plain, session=session) as tls:
                _talk(tls, b"EHLO client.test\r\n")  # the ticket of TLS 1.3 comes before the reply
                visit = Visit(tls.session, bool(tls.session_reused))
                _talk(tls, b"QUIT\r\n")
                return visit


def _context(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


def _hurry(connection: socket.socket) -> None:
    """Without this, each side waits 40 ms for the other's acknowledgement."""
    for option in (socket.TCP_NODELAY, socket.TCP_QUICKACK):
        connection.setsockopt(socket.IPPROTO_TCP, option, 1)


def _talk(connection: socket.socket, line: bytes) -> None:
    """Send a line, and read the reply to it, or the greeting."""
    connection.sendall(line)
    _hurry(connection)
    reply = b""
    while not (reply.endswith(b"\r\n") and reply.splitlines()[-1][3:4] == b" "):
        data = connection.recv(4096)
        assert data, f"end of stream behind {reply!r}"
        reply += data
    assert reply[:1] == b"2", reply
