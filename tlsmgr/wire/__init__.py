"""wire - the attribute lists of the tlsmgr protocol: bytes to requests, replies to bytes.

Each list is ``*(name NUL value NUL) NUL`` (Postfix attr_print0, attr_scan0). This package checks
framing and types; `service` checks the meaning, such as the name of a cache type. It makes no
system call, reads no clock and writes no log line. Workers run it without a lock.

    requests    the six requests, their attributes and value types
    reader      bytes to requests
    reply       replies to bytes

There are two readers, which agree:

* ``read_whole`` takes a segment that is exactly one well-formed request, as nearly all are, for the
  price of one split and one match;
* ``RequestReader`` takes everything else: pieces, pipelines, malformed lists. It works field by
  field, so that it refuses a wrong attribute as soon as it is read, as stock does, and not at the
  end of the list.

No bytes raise an exception. A malformed list is one ``Malformed`` event; the rest of the list is
skipped, and the request behind it is read. A client whose request was refused may send the next one
in a new segment without ending the refused list. At most ``REQUEST_LIMIT`` bytes of a list are
held.
"""

from tlsmgr.wire.reader import RequestReader, read_whole
from tlsmgr.wire.reply import write_reply, write_seed, write_session
from tlsmgr.wire.requests import (
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
