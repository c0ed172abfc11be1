"""wire - the attribute lists of the tlsmgr protocol: bytes to requests, replies to bytes.

Every list is ``*(name NUL value NUL) NUL`` (Postfix attr_print0/attr_scan0). Framing and types are
dealt with here, meaning is not: what a cache type or a key name of 15 bytes is worth is for
``service`` to say. There is no socket, clock or log in sight; workers run this code without a lock.

Two readers share one meaning:

* ``read_whole`` takes a segment that is exactly one well-formed request, which is what nearly
  every segment is, at the price of a split and a match, or at sight;
* ``RequestReader`` takes everything else: pieces, pipelines, rubbish. It works field by field, so
  that a wrong attribute is answered when it is seen, like stock does, and not at the list's end.

What a reader promises: whatever the bytes are, it yields events and raises nothing. A malformed
list is one ``Malformed``, its remainder is skipped, and the request behind it is read. A client
that was told off and starts afresh with ``request`` at the head of a segment is understood, even
if it never ended its bad list. At most ``REQUEST_LIMIT`` bytes of a list are ever held.
"""

from tlsmgr.wire.forms import (
    ANNOUNCEMENT,
    BAD_REQUEST,
    FAILED,
    OK,
    REQUEST_LIMIT,
    Delete,
    Event,
    InputWarning,
    Lookup,
    Malformed,
    Paused,
    Policy,
    Request,
    Seed,
    TicketKey,
    Update,
    WakeUp,
)
from tlsmgr.wire.reader import RequestReader, read_whole
from tlsmgr.wire.reply import write_reply, write_seed, write_session

__all__ = [
    "ANNOUNCEMENT",
    "BAD_REQUEST",
    "FAILED",
    "OK",
    "REQUEST_LIMIT",
    "Delete",
    "Event",
    "InputWarning",
    "Lookup",
    "Malformed",
    "Paused",
    "Policy",
    "Request",
    "RequestReader",
    "Seed",
    "TicketKey",
    "Update",
    "WakeUp",
    "read_whole",
    "write_reply",
    "write_seed",
    "write_session",
]
