"""once - the -S option: one request from standard input, its reply to standard output.

No children, no listening socket, no announcement: the process serves the request itself, in slot 0,
after the whole start-up. A cache whose file another daemon uses is left out, without a message: a
test start is made beside the daemon that serves. Empty input and a wake-up get no reply. Nothing
here is fatal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from tlsmgr import log
from tlsmgr.processes.filewatch import FileWatch
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.janitor import Duties
from tlsmgr.processes.setup import make_context
from tlsmgr.service import (
    Context,
    Deferred,
    Refusal,
    answer_seeds,
    commit_changes,
    handle,
    refuse,
)
from tlsmgr.sessions.file import StoreFile, is_claimed
from tlsmgr.wire import Event, InputWarning, Malformed, Paused, RequestReader, Seed, WakeUp

READ_SIZE = 32768


def serve(inherited: Inherited, duties: Duties) -> None:
    """Do what parent and janitor do at a start, serve one request, and return."""
    now = time.monotonic()
    located = duties.locate()
    exchange = duties.exchange_file(located.exchange)
    duties.enter_jail()
    with duties.as_owner():
        inherited = inherited.with_files(_unclaimed(duties.store_files(located)))
        files = FileWatch(
            inherited.caches, inherited.scoreboard, inherited.pool.extract, lambda: None
        )
        files.make_all()
        exchange.update(now)
    duties.reseeder.run(now)
    _serve(inherited)
    with duties.as_owner():
        exchange.save()


def _unclaimed(files: Sequence[StoreFile | None]) -> list[StoreFile | None]:
    """Return the files without those in use by the daemon that a test start runs beside."""
    return [None if file is None or is_claimed(file) else file for file in files]


def _serve(inherited: Inherited) -> None:
    event = _read_event(RequestReader(inherited.source))
    if event is None or isinstance(event, WakeUp | InputWarning):
        return
    reply = _answer(make_context(inherited, 0), event)
    while reply:
        reply = reply[os.write(1, reply) :]


def _read_event(reader: RequestReader) -> Event | None:
    """Return the first request, or the answer to a partial one."""
    while True:
        event = reader.next_event()
        if isinstance(event, InputWarning):
            log.warning(event.text)
        elif event is not None and not isinstance(event, Paused):
            return event
        elif event is None:
            segment = os.read(0, READ_SIZE)
            if not segment:
                return reader.end_of_input()
            reader.receive(segment)


def _answer(context: Context, event: Event) -> bytes:
    assert not isinstance(event, WakeUp | InputWarning | Paused)
    now = int(time.time())
    if isinstance(event, Malformed):
        log.warning(event.complaint)
        return refuse(event)
    reply = handle(context, event, now)
    if isinstance(reply, Seed):
        return answer_seeds(context, [reply])[0]
    if isinstance(reply, Deferred):
        return commit_changes(context, [reply], now)[0]
    if isinstance(reply, Refusal):
        if reply.complaint:
            log.warning(reply.complaint)
        return reply.reply
    assert isinstance(reply, bytes)  # no other host is asked
    return reply
