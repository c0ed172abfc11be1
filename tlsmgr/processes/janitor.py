"""janitor - the process that touches files, so that the parent never has to.

A file system can block a process for good (frozen, a dying disk, a dead server), and damaged pages
of a session file end it. The parent must survive both. So one child does everything that reads or
writes a disk: it finds and makes the session files, watches and sweeps them, keeps the PRNG
exchange file, and reads the entropy source. It sees no byte of a client.

The first janitor is forked before the jail. As root and mail_owner it finds the directories, passes
their descriptors to the parent (LOCATED), enters the jail, and makes the files (MADE). Its
successors are forked from the jailed parent and get these descriptors. RENEWED tells the parent
that a file was made new, so that workers must open it again.

It ends when the parent ends (end of its pipe), and saves the exchange file first; SIGTERM, which
master(8) sends to the whole process group, is ignored. A defect is a traceback in the log, status
1 and a new janitor; bad configuration that only the disk shows is passed to the parent (FATAL).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from tlsmgr import log
from tlsmgr.log import Fatal
from tlsmgr.prng.exchange import ExchangeFile
from tlsmgr.prng.reseed import Reseeder
from tlsmgr.processes import setup
from tlsmgr.processes.filewatch import FileWatch
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.jobs import Jobs
from tlsmgr.sessions.file import CLOSED, StoreFile
from tlsmgr.sessions.sweep import Sweep

DEFECT = 1  # exit status: a traceback is in the log
BEAT_INTERVAL = 1.0  # seconds; the longest time between two iterations
BLOCKED_PAUSE = 1.0  # seconds before a job that must not touch files looks again
MESSAGE_BYTES = 65536
FILE_WATCH = "file watch"  # the job that makes files new
MOST_DIRECTORIES = 8

LOCATED, MADE, RENEWED, FATAL = "located", "made", "renewed", "fatal"


class FileLocation(NamedTuple):
    """An open directory and the name of a file in it."""

    descriptor: int
    name: str


class Located(NamedTuple):
    """Where files are: the exchange file, and one for each cache; None where there is none."""

    exchange: FileLocation | None
    caches: tuple[FileLocation | None, ...]

    def descriptors(self) -> set[int]:
        """Return the descriptors of all directories."""
        return {place.descriptor for place in self.places() if place is not None} - {CLOSED}

    def places(self) -> tuple[FileLocation | None, ...]:
        """Return all of them, the exchange file's first."""
        return (self.exchange, *self.caches)


class Message(NamedTuple):
    """A message to the parent; ``located`` comes with LOCATED, ``text`` with FATAL."""

    kind: str
    located: Located | None = None
    text: str = ""


@dataclass(frozen=True)
class Duties:
    """The janitor's tasks, as functions, and how it changes its identity."""

    locate: Callable[[], Located]  # before the jail; as root, for the first janitor only
    enter_jail: Callable[[], None]
    as_owner: Callable[[], AbstractContextManager[None]]
    exchange_file: Callable[[FileLocation | None], ExchangeFile]
    store_files: Callable[[Located], Sequence[StoreFile | None]]
    reseeder: Reseeder
    damage_alarm: int  # an eventfd: a file was reported as damaged


class Link:
    """One end of the pair of sockets between janitor and parent: whole messages, descriptors."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send a message; waits for room. Raises OSError when the parent is gone."""
        places = message.located.places() if message.located is not None else ()
        content = {
            "kind": message.kind,
            "text": message.text[:1000],
            "places": [p and [p.name, p.descriptor != CLOSED] for p in places],
        }
        descriptors = [p.descriptor for p in places if p is not None and p.descriptor != CLOSED]
        socket.send_fds(self._socket, [json.dumps(content).encode()], descriptors)

    def receive(self, timeout: float) -> Message | None:
        """Return the next message; None when there is none in that time, or no janitor."""
        self._socket.settimeout(timeout)
        try:
            data, found, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, MOST_DIRECTORIES)
        except (TimeoutError, BlockingIOError, ConnectionError):
            return None
        for descriptor in found:
            os.set_inheritable(descriptor, False)
        return _message(json.loads(data), found) if data else None

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _message(content: Any, descriptors: list[int]) -> Message:
    passed = iter(descriptors)
    places = [
        None
        if place is None
        else FileLocation(next(passed, CLOSED) if place[1] else CLOSED, place[0])
        for place in content["places"]
    ]
    located = Located(places[0], tuple(places[1:])) if places else None
    return Message(content["kind"], located, content["text"])


def make_links() -> tuple[Link, Link]:
    """Return the parent's end and the janitor's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Link(ours), Link(theirs)


def main(
    inherited: Inherited,
    slot: int,
    link: Link,
    parent_alive_fd: int,
    duties: Duties,
    located: Located | None,
) -> int:
    """Janitor entry point, called in the child after fork(); return the exit status.

    ``located`` is None for a janitor that is forked before the jail.
    """
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        setup.name_process("tlsmgr-janitor")
        setup.close_all_but(
            {parent_alive_fd, link.fileno(), duties.damage_alarm}
            | {*log.descriptors(), *duties.reseeder.descriptors()}
            | (located.descriptors() if located is not None else set())
        )
        inherited.pool.attach(slot)
        inherited.scoreboard.beat(slot, time.monotonic())
        if located is None:
            located = duties.locate()
            inherited.scoreboard.beat(slot, time.monotonic())  # it may have taken long
            link.send(Message(LOCATED, located))
            duties.enter_jail()
        Janitor(inherited, slot, link, duties, located).run(parent_alive_fd)
    except Fatal as error:
        link.send(Message(FATAL, text=error.text))
    except ConnectionError:
        return 0  # the parent is gone
    except Exception as bug:
        log.traceback(bug)
        return DEFECT
    return 0


class Janitor:
    """The loop."""

    def __init__(
        self, inherited: Inherited, slot: int, link: Link, duties: Duties, located: Located
    ) -> None:
        self._scoreboard = inherited.scoreboard
        self._slot = slot
        self._link = link
        self._duties = duties
        self._exchange = duties.exchange_file(located.exchange)
        self._inherited = inherited.with_files(duties.store_files(located))
        self._watch = FileWatch(
            self._inherited.caches,
            inherited.scoreboard,
            inherited.pool.extract,
            self._report_renewed,
        )
        self._jobs = Jobs()

    def run(self, parent_alive_fd: int) -> None:
        """Make the files, then do the maintenance until the parent ends."""
        with self._duties.as_owner():
            self._watch.make_all()
        self._scoreboard.note_files_checked(time.monotonic())
        self._link.send(Message(MADE))
        self._add_jobs()
        poll = select.poll()
        poll.register(parent_alive_fd)
        poll.register(self._duties.damage_alarm, select.POLLIN)
        ready: set[int] = set()
        while parent_alive_fd not in ready:
            self._scoreboard.beat(self._slot, time.monotonic())
            if ready:
                os.eventfd_read(self._duties.damage_alarm)
                self._jobs.run_soon(FILE_WATCH)
            delay = min(self._jobs.run(), BEAT_INTERVAL)
            ready = {descriptor for descriptor, _ in poll.poll(delay * 1000)}
        with self._duties.as_owner():
            self._exchange.save()

    def _report_renewed(self) -> None:
        with contextlib.suppress(ConnectionError):  # the parent is gone: the loop sees it next
            self._link.send(Message(RENEWED))

    def _add_jobs(self) -> None:
        """Add them in stock's order, but for the file watch (Postfix tlsmgr.c)."""
        as_owner = self._duties.as_owner

        def watch(now: float) -> float:
            with as_owner():
                return self._watch.run(now)

        self._jobs.add(FILE_WATCH, watch)  # the first: it finds damage before a sweep does
        self._jobs.add("reseed", self._elsewhere(self._reseed))
        update = self._on_disk(self._update_exchange_file)
        self._jobs.add("exchange file", self._elsewhere(update))
        for i, plan in enumerate(self._inherited.caches):
            if plan.file is not None:
                counts = self._inherited.stats.cache_row(self._slot, i)
                stir = self._inherited.pool.stir
                sweep = Sweep(plan.rules, plan.shared, plan.file, stir, counts)
                self._jobs.add(f"{plan.rules.cache_type} cache sweep", self._on_disk(sweep.run))

    def _elsewhere(self, run: Callable[[float], float]) -> Callable[[float], float]:
        """Return the job, which touches no session file: if it is blocked, only we are."""

        def away_from_files(now: float) -> float:
            with self._scoreboard.away_from_files(self._slot):
                return run(now)

        return away_from_files

    def _reseed(self, _: float) -> float:
        reseeder = self._duties.reseeder
        before, now = reseeder.readings, time.monotonic()
        delay = reseeder.run(now)
        facts = self._scoreboard.generator()._replace(source_fails=reseeder.is_failing)
        if reseeder.readings > before:
            facts = facts._replace(reseeds=facts.reseeds + 1, reseeded=now)
        self._scoreboard.note_generator(facts)
        return delay

    def _update_exchange_file(self, _: float) -> float:
        before, now = self._exchange.updates, time.monotonic()
        delay = self._exchange.update(now)
        facts = self._scoreboard.generator()._replace(exchange_fails=self._exchange.is_failing)
        if self._exchange.updates > before:
            facts = facts._replace(saved=now)
        self._scoreboard.note_generator(facts)
        return delay

    def _on_disk(self, run: Callable[[float], float]) -> Callable[[float], float]:
        """Return the job as mail_owner, and not while a file system blocks."""

        def unless_blocked(now: float) -> float:
            if self._scoreboard.files_blocked[0]:
                return BLOCKED_PAUSE
            with self._duties.as_owner():
                return run(now)

        return unless_blocked
