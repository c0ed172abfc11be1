"""complaints - log texts about unreadable requests, the same for stock tlsmgr(8) and ours."""

from __future__ import annotations

MISSING = "missing attribute {} in input from tlsmgr socket"
UNEXPECTED = "unexpected attribute {} from tlsmgr socket (expecting: {})"
VALUE = "malformed {} data from tlsmgr socket while reading input attribute value: {}"


def end_of_input(data: bytes) -> str:
    """Return the text for input that ends after these bytes of a request."""
    start = "premature end-of-input on" if data.endswith(b"\0") else "unexpected end-of-input from"
    part = "value" if data.count(b"\0") % 2 else "name"
    return f"{start} tlsmgr socket while reading input attribute {part}"
