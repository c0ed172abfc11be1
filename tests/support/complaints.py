"""What a log tells of requests that can't be read: stock tlsmgr(8)'s words, and ours."""

from __future__ import annotations

MISSING = "missing attribute {} in input from tlsmgr socket"
UNEXPECTED = "unexpected attribute {} from tlsmgr socket (expecting: {})"
VALUE = "malformed {} data from tlsmgr socket while reading input attribute value: {}"


def end_of_input(data: bytes) -> str:
    """For input that ends behind these bytes of a request."""
    words = "premature end-of-input on" if data.endswith(b"\0") else "unexpected end-of-input from"
    part = "value" if data.count(b"\0") % 2 else "name"
    return f"{words} tlsmgr socket while reading input attribute {part}"
