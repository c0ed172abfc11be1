"""filewatch - makes the files of the session caches, and makes one new when it is lost or damaged.

The content of these files is expendable. One that an earlier daemon handed over is used on, if it
is sound. A file that was removed, replaced or damaged, or whose
lock table was, is made new and empty, under new keys; workers that have the old one open are
replaced, which ``on_renewed`` causes. Run by the janitor, in slices of one look at every file. A
file that can't be made is tried again; that is one warning in ten minutes, and an info line when it
is over. Nothing is fatal.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from tlsmgr import log
from tlsmgr.processes.inherited import CachePlan
from tlsmgr.processes.scoreboard import Scoreboard
from tlsmgr.sessions.file import StoreError, StoreFile, claim, in_directory, is_lost
from tlsmgr.sessions.seal import KEY_BYTES
from tlsmgr.sessions.store import Store, create

WATCH_INTERVAL = 2.0  # seconds between two looks at the files
RETRY_INTERVAL = 30.0  # seconds before a file that could not be made is tried again
WARNING_INTERVAL = 600.0  # seconds between two warnings about one such file


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
        self._failed: dict[tuple[int, str], float] = {}  # not made, and when each is tried again
        self._limit = log.Limit(WARNING_INTERVAL)

    def make_all(self) -> None:
        """Make every file, or take over the one that an earlier janitor or daemon made.

        One that this daemon made and that is lost is left to ``run``: workers have it open.
        """
        for plan, file in self._plans:
            inherited, plan.shared.is_inherited[0] = plan.shared.is_inherited[0], 0
            if not file.mark.inode:
                self._make(file)
            elif not is_lost(file):
                self._take_over(file)
                if inherited:
                    _count(plan, file)
            elif inherited:
                self._make_new(plan, file)

    def run(self, now: float) -> float:
        """Look at every file, and make new the ones that need it."""
        if self._scoreboard.files_blocked[0]:
            self._probe()
        broken = [(plan, file) for plan, file in self._plans if self._is_broken(file)]
        made = [self._make_new(plan, file) for plan, file in broken if self._is_due(file)]
        if any(made):
            self._on_renewed()
        self._scoreboard.note_files_checked(time.monotonic())
        return WATCH_INTERVAL

    def _probe(self) -> None:
        """Write to every file; returns when no file system blocks that any more."""
        for descriptor in self._claims.values():
            with contextlib.suppress(OSError):  # it fails, so it does not block
                os.utime(descriptor)

    def _take_over(self, file: StoreFile) -> None:
        """Claim a file that is in place; a janitor that is blocked in the kernel may have it."""
        with contextlib.suppress(StoreError), in_directory(file.directory):
            self._claims[file[:2]] = claim(file.name)

    def _is_broken(self, file: StoreFile) -> bool:
        if is_lost(file):
            return True
        if file[:2] not in self._claims:
            self._take_over(file)
        return False

    def _is_due(self, file: StoreFile) -> bool:
        """Return whether to try to make it now."""
        return time.monotonic() >= self._failed.get(file[:2], 0.0)

    def _make_new(self, plan: CachePlan, file: StoreFile) -> bool:
        descriptor = self._claims.pop(file[:2], None)
        if descriptor is not None:
            os.close(descriptor)
        failed_before = file[:2] in self._failed
        plan.shared.renew(self._random(2 * KEY_BYTES))  # before a worker can open the file
        if not self._make(file):
            return False
        if failed_before:
            log.info(f"{file.name} could be made: {plan.rules.cache_type} sessions are cached")
        else:
            log.warning(
                f"{file.name} was damaged or removed: recreated empty;"
                " clients will do full handshakes"
            )
        return True

    def _make(self, file: StoreFile) -> bool:
        key = file[:2]
        try:
            self._claims[key] = create(file)
        except StoreError as error:
            now = time.monotonic()
            self._failed[key] = now + RETRY_INTERVAL
            text = f"cannot make {file.name}: {error}; will try again"
            self._limit.warning(str(key), text, now)
            return False
        self._failed.pop(key, None)
        return True


def _count(plan: CachePlan, file: StoreFile) -> None:
    """Log how many sessions are in a file that was taken over."""
    try:
        store = Store(file)
        try:
            count, _ = store.usage()
        finally:
            store.close()
    except StoreError as error:
        if error.damaged:
            file.mark.report_damage(file.mark.inode)
        return
    log.info(f"{plan.rules.cache_type} TLS session cache: {count} sessions are kept in {file.name}")
