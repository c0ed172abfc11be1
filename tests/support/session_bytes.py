"""session_bytes - what passes for a session: an SSL_SESSION of any protocol, with any content."""

from __future__ import annotations

TLS_1_2, TLS_1_3 = 0x0303, 0x0304


def sequence(content: bytes) -> bytes:
    """A SEQUENCE of ASN.1 with this content, its length in the shortest form."""
    length = len(content)
    if length < 0x80:
        return bytes([0x30, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([0x30, 0x80 | size]) + length.to_bytes(size, "big") + content


def session(content: bytes | str, protocol: int = TLS_1_3) -> bytes:
    """A session with this content."""
    data = content if isinstance(content, bytes) else content.encode()
    return sequence(bytes.fromhex("020101 0202") + protocol.to_bytes(2, "big") + data)
