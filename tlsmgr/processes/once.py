"""once - the -S option: one request from standard input, its reply to standard output.

No workers, no listening socket, no announcement; the parent serves it itself, in slot 0, after it
went through all of the start-up. No input, or a wake-up, gets no reply. Nothing here is fatal.
"""

from __future__ import annotations

import os
import time

from tlsmgr import log
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.setup import make_context
from tlsmgr.service import Context, answer_seeds, commit_changes, handle, refuse
from tlsmgr.wire import Event, InputWarning, Malformed, RequestReader, Seed, WakeUp

READ_SIZE = 32768


def serve(inherited: Inherited) -> None:
    """Serve one request and return."""
    event = _read_event(RequestReader(inherited.source))
    if event is None or isinstance(event, WakeUp | InputWarning):
        return
    reply = _answer(make_context(inherited, 0), event)
    while reply:
        reply = reply[os.write(1, reply) :]


def _read_event(reader: RequestReader) -> Event | None:
    """The first request, or what is to be said to half of one."""
    while True:
        event = reader.next_event()
        if isinstance(event, InputWarning):
            log.warning(event.text)
        elif event is not None:
            return event
        else:
            segment = os.read(0, READ_SIZE)
            if not segment:
                return reader.end_of_input()
            reader.receive(segment)


def _answer(context: Context, event: Event) -> bytes:
    assert not isinstance(event, WakeUp | InputWarning)
    now = int(time.time())
    if isinstance(event, Malformed):
        log.warning(event.complaint)
        return refuse(event)
    reply = handle(context, event, now)
    if isinstance(reply, Seed):
        return answer_seeds(context, [reply])[0]
    return reply if isinstance(reply, bytes) else commit_changes(context, [reply], now)[0]
