"""der - the protocol version inside a stored session, which is an SSL_SESSION of OpenSSL in DER.

Its ASN.1 (OpenSSL ssl/ssl_asn1.c) is SEQUENCE { version INTEGER, sslVersion INTEGER, ... }. Only
these are read, strictly: anything else has no version. Pure; nothing is raised.
"""

from __future__ import annotations

from collections.abc import Mapping

_SEQUENCE = 0x30
_LONG_FORM = 0x80  # of a length: the other bits are the number of bytes that it has
_MOST_LENGTH_BYTES = 4
_HEAD = bytes.fromhex("020101 0202")  # INTEGER 1, and an INTEGER of two bytes

TLS_1_3 = 0x0304
NAMES: Mapping[int, str] = {
    0x0300: "SSLv3",
    0x0301: "TLSv1",
    0x0302: "TLSv1.1",
    0x0303: "TLSv1.2",
    TLS_1_3: "TLSv1.3",
}
"""As Postfix names them in its log."""


def protocol_version(session: bytes) -> int | None:
    """Return the protocol version as on the wire of TLS, None when this is no SSL_SESSION."""
    start = _content_of_sequence(session)
    if start is None or session[start : start + len(_HEAD)] != _HEAD:
        return None
    at = start + len(_HEAD)
    version = session[at : at + 2]
    return int.from_bytes(version, "big") if len(version) == 2 else None


def protocol_name(session: bytes) -> str | None:
    """Return the name of the protocol version, None when it is not known."""
    version = protocol_version(session)
    return None if version is None else NAMES.get(version)


def _content_of_sequence(data: bytes) -> int | None:
    """Return where the content of a SEQUENCE that is all of the data begins."""
    if len(data) < 2 or data[0] != _SEQUENCE:
        return None
    length, start = data[1], 2
    if length & _LONG_FORM:
        size = length & ~_LONG_FORM
        start += size
        length = int.from_bytes(data[2:start], "big")
        shortest = (size == 1 and length < _LONG_FORM) or (size > 1 and data[2:3] == b"\0")
        if not 1 <= size <= _MOST_LENGTH_BYTES or shortest:
            return None  # the indefinite form, or more bytes than it takes
    return start if start + length == len(data) else None
