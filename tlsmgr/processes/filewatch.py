"""filewatch - makes the files of the session caches, and makes one new when it is lost or damaged.

The content of these files is expendable. A file that was removed, replaced or damaged is made new
and empty, under new keys; workers that have the old one open are replaced, which ``on_renewed``
causes. Run by the janitor, in slices of one look at every file. A file that can't be made is a
warning and is tried again; nothing is fatal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tlsmgr import log
from tlsmgr.processes.inherited import CachePlan, Scoreboard
from tlsmgr.sessions.file import StoreError, StoreFile, claim, in_directory, inode_of
from tlsmgr.sessions.record import KEY_BYTES
from tlsmgr.sessions.store import create

WATCH_INTERVAL = 2.0  # seconds between two looks at the files
RETRY_INTERVAL = 30.0  # seconds before a file that could not be made is tried again


class FileWatch:
    """All files of the caches."""

    def __init__(
        self,
        plans: tuple[CachePlan, ...],
        scoreboard: Scoreboard,
        random: Callable[[int], bytes],
        on_renewed: Callable[[], None],
    ) -> None:
        self._plans = [(plan, plan.file) for plan in plans if plan.file is not None]
        self._scoreboard = scoreboard
        self._random = random
        self._on_renewed = on_renewed
        self._claims: dict[tuple[int, str], int] = {}  # descriptors that keep the files ours

    def make_all(self) -> None:
        """Make every file, or take over the one that an earlier janitor of this daemon made."""
        for plan, file in self._plans:
            if not (self._take_over(file) or self._make(file)):
                plan.shared.report_damage()

    def run(self, now: float) -> float:
        """Look at every file, and make new the ones that need it."""
        if self._scoreboard.files_blocked[0]:
            self._probe()
        broken = [(p, file) for p, file in self._plans if p.shared.take_damage() | self._lost(file)]
        made = [self._make_new(plan, file) for plan, file in broken]
        if any(made):
            self._on_renewed()
        self._scoreboard.note_files_checked(time.monotonic())
        return WATCH_INTERVAL if all(made) else RETRY_INTERVAL

    def _probe(self) -> None:
        """Write to every file; returns when no file system blocks that any more."""
        for descriptor in self._claims.values():
            os.utime(descriptor)

    def _take_over(self, file: StoreFile) -> bool:
        if file.mark is None or inode_of(file) != file.mark[0]:
            return False
        try:
            with in_directory(file.directory):
                self._claims[file[:2]] = claim(file.name)
        except StoreError:
            return False
        return True

    def _lost(self, file: StoreFile) -> bool:
        descriptor = self._claims.get(file[:2])
        return descriptor is None or os.fstat(descriptor).st_ino != inode_of(file)

    def _make_new(self, plan: CachePlan, file: StoreFile) -> bool:
        descriptor = self._claims.pop(file[:2], None)
        if descriptor is not None:
            os.close(descriptor)
        # A process that still has the old file open counts its serials under another lock.
        plan.shared.renew(self._random(2 * KEY_BYTES))
        if not self._make(file):
            plan.shared.report_damage()
            return False
        cause = "could not be made before"
        if descriptor is not None:
            cause = "was damaged or removed"
        log.warning(f"{file.name} {cause}: recreated empty; clients will do full handshakes")
        return True

    def _make(self, file: StoreFile) -> bool:
        try:
            self._claims[file[:2]] = create(file)
        except StoreError as error:
            log.warning(f"cannot make {file.name}: {error}")
            return False
        return True
