"""file_access - where the session files are, and whether processes may use them now.

The parent asks this before each fork, and touches no file itself. The janitor sends what it did:
LOCATED (the directories), MADE, RENEWED (workers have to open a file again), and FATAL (bad
configuration that only the disk shows).

While a file system blocks a process, ``files_blocked`` in shared memory keeps all others away from
files, and new workers start without caches: seeds, policies and ticket keys go on. Access is
allowed again when no process is stalled and the janitor has written to every file since. A janitor
that the exchange file or the entropy source blocks does not count.

Used by the parent only; no lock. Nothing here waits for a file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tlsmgr import log
from tlsmgr.log import Fatal
from tlsmgr.processes import janitor
from tlsmgr.processes.auxiliaries import Entry, Start
from tlsmgr.processes.children import Child
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.janitor import Duties, Located, Message

MAKE_TIME = 1.0  # seconds that workers wait for the files at the start


class FileAccess:
    """The parent's end of the link to the janitor, and what follows from its messages."""

    def __init__(self, inherited: Inherited, duties: Duties) -> None:
        self.link, self.janitor_end = janitor.make_links()
        self.inherited = inherited
        """The record for children that use files; without any until they are located."""
        self.located: Located | None = None
        self.made = False
        self.due = 0.0  # when workers start, with files or without
        self._scoreboard = inherited.scoreboard
        self._duties = duties
        self._blocked_since = 0.0

    def take_message(self, timeout: float) -> str | None:
        """Handle a message of the janitor; return its kind, None if there is none. Raises Fatal.

        A closed link is noticed when the janitor is reaped.
        """
        message = self.link.receive(timeout)
        if message is None:
            return None
        if message.kind == janitor.FATAL:
            raise Fatal(message.text)
        if message.kind == janitor.LOCATED:
            self._note_located(message)
        elif message.kind == janitor.MADE:
            self.made = True
        return message.kind

    def _note_located(self, message: Message) -> None:
        assert message.located is not None
        self.located = message.located
        self.inherited = self.inherited.with_files(self._duties.store_files(message.located))

    def wait_for_files(self, now: float) -> None:
        """Let workers wait for the files from now on, but not for long."""
        self.due = now + MAKE_TIME

    def update_blocked(
        self, children: list[Child], is_blocked: Callable[[Child], bool], now: float
    ) -> None:
        """Block all access to files when one process is blocked; allow it when all is well."""
        blocked = self._scoreboard.files_blocked
        stalled = [child for child in children if child.stalled and self._touches_files(child)]
        if any(map(is_blocked, stalled)):
            if not blocked[0]:
                log.warning("a file system does not respond; sessions are not cached until it does")
            blocked[0] = 1
            self._blocked_since = now
        elif blocked[0] and not stalled and self._scoreboard.files_checked > self._blocked_since:
            blocked[0] = 0
            log.info("the file system responds again: sessions are cached")

    def _touches_files(self, child: Child) -> bool:
        return child.uses_files and not self._scoreboard.is_away(child.slot)

    def is_allowed(self) -> bool:
        """Return whether a child that starts now may open the files."""
        return self.made and not self._scoreboard.files_blocked[0]

    def record(self, uses_files: bool) -> Inherited:
        """Return what a child inherits."""
        return self.inherited if uses_files else self.inherited.without_files()

    def janitor_start(self, slot: int, parent_alive_fd: int, jailed: bool) -> Start:
        """Return how the next janitor starts. In the jail none can look for directories."""
        if jailed and self.located is None:
            log.error("session caches are not available until the next reload")
            self.located = Located(None, (None,) * len(self.inherited.caches))
        entry: Entry = partial(
            janitor.main, self.inherited, slot, self.janitor_end, parent_alive_fd,
            self._duties, self.located,
        )  # fmt: skip
        return Start(True, entry)

    def seconds_left(self, now: float) -> float:
        """Return for how long workers still wait for the files; 0 when they do not."""
        return 0.0 if self.made else max(0.0, self.due - now)
