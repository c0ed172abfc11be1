"""client - ask a tlsmgr, ours or Postfix's, what smtpd(8) and smtp(8) ask it.

A Client is one connection to the UNIX-domain socket of a tlsmgr. It connects at the first call,
checks that the server announces itself as tlsmgr (Postfix 3.6 and later do), and keeps the
connection for later calls.

No call takes longer than the time limit, connecting included. A connection that the server closed
(restart, ``postfix reload``) is made again once per call. Failures are the exceptions below, whose
text has no session, key or seed. After a time-out the connection is closed, so that a late reply
is not taken for the answer to the next request.

A request whose connection breaks before the reply is sent again, as Postfix does, although the
first copy may have been served. Only delete shows it: it may then return False for a session that
this very call removed.

One Client serves one thread, and does not survive a fork.

    with Client("/var/spool/postfix/private/tlsmgr") as client:
        seed = client.seed(32)
"""

from __future__ import annotations

import base64
import binascii
import os
import struct
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from tlsmgr.client.connection import (
    Attributes,
    BadRequest,
    Connection,
    Deadline,
    HungUp,
    ProtocolError,
    RequestFailed,
    TimedOut,
    TlsmgrError,
    Unavailable,
    encode,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "BadRequest",
    "Client",
    "Policy",
    "ProtocolError",
    "RequestFailed",
    "TicketKey",
    "TimedOut",
    "TlsmgrError",
    "Unavailable",
]

DEFAULT_TIMEOUT = 10.0  # seconds
RECONNECT_PAUSE = 0.1  # seconds: the process that hung up on us may still be the one that accepts

STATUS_OK = 0
STATUS_FAIL = -1  # not found, or the operation failed
STATUS_BAD_REQUEST = -2


class Policy(NamedTuple):
    """The server's policy for one session cache."""

    cachable: bool  # a database is configured and the timeout is not zero
    timeout: int  # seconds that a session lives


_TICKET_KEY = struct.Struct("=16s32s32sq")  # 88 bytes


@dataclass(frozen=True)
class TicketKey:
    """A session ticket key: Postfix's struct TLS_TICKET_KEY (src/tls/tls_scache.h), 64-bit.

    The name travels in the clear inside every ticket; bits and hmac are secret, and not in repr().
    """

    name: bytes  # 16 bytes
    bits: bytes = field(repr=False)  # 32 bytes, cipher key
    hmac: bytes = field(repr=False)  # 32 bytes, HMAC-SHA256 key
    tout: int  # time stamp, seconds: for new tickets before that moment only

    def to_bytes(self) -> bytes:
        """Return the 88 bytes that the server sent (native byte order)."""
        return _TICKET_KEY.pack(self.name, self.bits, self.hmac, self.tout)


class Client:
    """A connection to the tlsmgr that listens at `path`.

    `timeout` is the limit in seconds of one call, None for no limit. Every call may raise
    Unavailable, TimedOut, ProtocolError and BadRequest; other errors are named at the call.
    cache_type is "smtpd", "smtp" or "lmtp". A type that the server does not know is a BadRequest,
    and so is, but for policy, one that has no database.
    """

    def __init__(
        self, path: str | os.PathLike[str], timeout: float | None = DEFAULT_TIMEOUT
    ) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self._connection: Connection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect now and check the announcement. A call does it when it has to."""
        self._exchange(b"")

    def close(self) -> None:
        """Close the connection, if there is one. A later call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def seed(self, size: int) -> bytes:
        """Return `size` bytes (1 to 255) of the server's random generator.

        RequestFailed: the generator has failed.
        """
        reply = self._request(b"seed", [(b"size", _integer(size))])
        seed = reply.data(b"seed")
        reply.expect_ok()
        if len(seed) != size:
            raise ProtocolError(f"asked for a seed of {size} bytes, received {len(seed)}")
        return seed

    def policy(self, cache_type: str) -> Policy:
        """Return whether there is a cache of that type, and how long a session lives in it."""
        reply = self._request(b"policy", [(b"cache_type", _string(cache_type))])
        policy = Policy(reply.number(b"cachable") != 0, reply.number(b"timeout"))
        reply.expect_ok()
        return policy

    def lookup(self, cache_type: str, cache_id: bytes) -> bytes | None:
        """Return the session with the id (any bytes but NUL), None when unknown or expired."""
        reply = self._request(b"lookup", _entry(cache_type, cache_id))
        session = reply.data(b"session")
        return session if reply.status == STATUS_OK else None

    def update(self, cache_type: str, cache_id: bytes, session: bytes) -> None:
        """Store the session, 0 or more bytes, under the id; it replaces an earlier one.

        RequestFailed: the server could not store it.
        """
        entry = [*_entry(cache_type, cache_id), (b"session", base64.b64encode(session))]
        self._request(b"update", entry).expect_ok()

    def delete(self, cache_type: str, cache_id: bytes) -> bool:
        """Remove the session with the id; return False when there was none."""
        return self._request(b"delete", _entry(cache_type, cache_id)).status == STATUS_OK

    def ticket_key(self, name: bytes = b"") -> TicketKey | None:
        """Return the key for new tickets (empty name), or the one with that name, 16 bytes.

        None: there is no such key, or it is too old, or session tickets are off.
        """
        reply = self._request(b"tktkey", [(b"keyname", base64.b64encode(name))])
        keybuf = reply.data(b"keybuf")
        if reply.status != STATUS_OK:
            return None
        if len(keybuf) != _TICKET_KEY.size:
            raise ProtocolError(
                f"expected a ticket key of {_TICKET_KEY.size} bytes, received {len(keybuf)}"
            )
        return TicketKey(*_TICKET_KEY.unpack(keybuf))

    def _request(self, name: bytes, attributes: Attributes) -> _Reply:
        reply = _Reply(self._exchange(encode([(b"request", name), *attributes])))
        if reply.status == STATUS_BAD_REQUEST:
            raise BadRequest(f"the server refused the request (status -2): {_WHY_REFUSED[name]}")
        return reply

    def _exchange(self, message: bytes) -> Attributes:
        """Send a message and return the reply; with an empty message only connect."""
        deadline = Deadline(self.timeout)
        try:
            return self._try_exchange(message, deadline)
        except HungUp:
            pass
        time.sleep(min(RECONNECT_PAUSE, deadline.remaining()))
        try:
            return self._try_exchange(message, deadline)
        except HungUp:
            raise Unavailable(f"{self.path}: the server closed the connection twice") from None

    def _try_exchange(self, message: bytes, deadline: Deadline) -> Attributes:
        try:
            if self._connection is None:
                self._connection = Connection(self.path)
                self._connection.open(deadline)
            return self._connection.exchange(message, deadline) if message else []
        except BaseException:  # after a keyboard interrupt, too, a reply may be on its way
            self.close()
            raise


class _Reply:
    """The attributes of a reply, read as Postfix's clients do (src/tls/tls_mgr.c).

    Attributes are asked for in the order of the protocol. Others in between are skipped; a missing
    or malformed one is a ProtocolError.
    """

    def __init__(self, attributes: Attributes) -> None:
        self._rest = iter(attributes)
        self.status = self.number(b"status")
        if self.status not in (STATUS_OK, STATUS_FAIL, STATUS_BAD_REQUEST):
            raise ProtocolError(f"status {self.status} in the reply")

    def expect_ok(self) -> None:
        if self.status != STATUS_OK:
            raise RequestFailed(f"the server could not do it (status {self.status})")

    def number(self, wanted: bytes) -> int:
        """Return the int that was sent as an unsigned decimal of 32 bits: 4294967295 is -1."""
        value = self._next(wanted)
        if not value.isdigit() or len(value) > 10 or int(value) > 0xFFFFFFFF:
            raise ProtocolError(f"attribute {wanted.decode()} of the reply is not a number")
        number = int(value)
        return number - (1 << 32) if number >> 31 else number

    def data(self, wanted: bytes) -> bytes:
        try:
            return base64.b64decode(self._next(wanted), validate=True)
        except binascii.Error:
            raise ProtocolError(f"attribute {wanted.decode()} of the reply is not base64") from None

    def _next(self, wanted: bytes) -> bytes:
        for name, value in self._rest:
            if name == wanted:
                return value
        raise ProtocolError(f"missing attribute {wanted.decode()} in the reply")


_NO_CACHE = "the cache type is unknown, or has no database configured"
_WHY_REFUSED = {
    b"seed": "a seed has 1 to 255 bytes",
    b"policy": "the cache type is unknown",
    b"lookup": _NO_CACHE,
    b"update": f"{_NO_CACHE}, or the request is too large",
    b"delete": _NO_CACHE,
    b"tktkey": "a ticket key name has 0 or 16 bytes",
}


def _entry(cache_type: str, cache_id: bytes) -> Attributes:
    return [(b"cache_type", _string(cache_type)), (b"cache_id", _string(cache_id))]


def _string(value: str | bytes) -> bytes:
    data = os.fsencode(value)
    if b"\0" in data:
        raise BadRequest("a cache type or cache id cannot have a NUL byte")
    return data


def _integer(value: int) -> bytes:
    if not 0 <= value <= 0xFFFFFFFF:
        raise BadRequest(f"{value} is not an unsigned 32-bit number")
    return b"%d" % value
