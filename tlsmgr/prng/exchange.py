"""The PRNG exchange file: what the pool is worth survives a restart (tls_random_exchange_name).

Read, stir, write: up to 1024 bytes from the start of the file go into the pool, and 1024 new ones
from the pool take their place, under an exclusive flock(2). Any other program that keeps to the
lock may share the file; Postfix's own tlsmgr does (tls_prng_exch.c), either way.

Run by the parent, at start, by timer and at every orderly end. open() comes before the jail and
keeps a descriptor of the directory, so that the file can be opened, and made again, by its relative
name from inside. It is opened afresh for each update: mode 0600, never through a symbolic link, and
nothing but a regular file.

Nothing is fatal and nothing stalls: the lock is only tried for, and while a stranger holds it the
update is postponed. Every failure is a warning, told again every ten minutes while it lasts, and is
tried again within a minute; a file that was removed is made anew.
"""

import errno
import fcntl
import os
import stat
import time

from tlsmgr import log
from tlsmgr.prng.pool import EntropyError, Pool
from tlsmgr.prng.timers import next_delay, retry_delay
from tlsmgr.prng.trouble import Trouble

SIZE = 1024  # bytes; as in Postfix tls_prng_exch.c
LOCK_POLL = 0.1  # seconds between two tries for the lock
LOCK_PATIENCE = 10.0  # seconds, after which a lock that a stranger holds is worth a warning
LOCK_REPOLL = 1.0  # seconds between two tries after that
SAVE_TRIES = 10  # for the lock at the end, SAVE_NAP apart
SAVE_NAP = 0.03  # seconds

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_MODE = 0o600


class ExchangeError(Exception):
    """The file is not what it must be; the text says what it is."""


class ExchangeFile:
    """One exchange file; with an empty name nothing is ever done."""

    def __init__(self, path: str, period: int, pool: Pool, directory: int = -1) -> None:
        """Take the values of tls_random_exchange_name and tls_random_prng_update_period.

        `period` is in seconds; `directory` is a descriptor of the directory, if it is open already.
        """
        self._path = path
        self._period = period
        self._pool = pool
        self._directory = directory
        self._known = False
        self._locked_since: float | None = None
        self._trouble = Trouble(f"PRNG exchange file {path}")

    def open(self, now: float) -> None:
        """Open the directory of the file: before the jail, as the owner of the file."""
        if not self._path:
            return
        try:
            self._open_directory()
        except OSError as error:
            self._trouble.report(f"cannot open its directory: {error.strerror}", now)

    def update(self, now: float) -> float:
        """Read, stir, write; return the seconds after which to call again.

        `now` is the monotonic time in seconds. Never blocks but for the disk.
        """
        if not self._path:
            return next_delay(self._period, self._pool)
        try:
            done = self._refresh()
        except (OSError, ExchangeError, EntropyError) as error:
            self._trouble.report(_reason(error), now)
            return retry_delay(self._period, self._pool)
        if not done:
            return self._postpone(now)
        self._locked_since = None
        self._trouble.over()
        return next_delay(self._period, self._pool)

    def save(self) -> None:
        """Read, stir, write at an orderly end; gives up after 0.3 s with a warning."""
        if not self._path:
            return
        try:
            for _ in range(SAVE_TRIES):
                if self._refresh():
                    return
                time.sleep(SAVE_NAP)
            reason = "locked by another program"
        except (OSError, ExchangeError, EntropyError) as error:
            reason = _reason(error)
        log.warning(f"PRNG exchange file {self._path}: not saved: {reason}")

    def close(self) -> None:
        """Close the directory: a worker after the fork, and the parent at its end."""
        if self._directory >= 0:
            os.close(self._directory)
        self._directory = -1

    def _postpone(self, now: float) -> float:
        """Return the seconds to wait for a lock that a stranger holds; warn when it takes long."""
        if self._locked_since is None:
            self._locked_since = now
        if now - self._locked_since < LOCK_PATIENCE:
            return LOCK_POLL
        self._trouble.report("locked by another program, update postponed", now)
        return LOCK_REPOLL

    def _refresh(self) -> bool:
        """Read, stir, write; False when the file is locked or was removed under our hands."""
        fd = self._open_file()
        try:
            if not _lock(fd) or not os.fstat(fd).st_nlink:
                return False
            self._pool.stir(os.pread(fd, SIZE, 0))
            written = os.pwrite(fd, self._pool.extract(SIZE), 0)
        finally:
            os.close(fd)  # and unlock it
        if written != SIZE:
            raise ExchangeError(f"only {written} of {SIZE} bytes could be written")
        return True

    def _open_file(self) -> int:
        """Open the file, made anew if it is not there; raise OSError or ExchangeError."""
        if self._directory < 0:
            self._open_directory()
        name = os.path.basename(self._path)
        try:
            fd = os.open(name, _FLAGS, dir_fd=self._directory)
        except FileNotFoundError:
            fd = self._make_file(name)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ExchangeError("it is not a regular file")
            if stat.S_IMODE(status.st_mode) != _MODE:
                os.fchmod(fd, _MODE)
        except BaseException:
            os.close(fd)
            raise
        self._known = True
        return fd

    def _make_file(self, name: str) -> int:
        """Make the file, in a directory that may have been removed and made anew as well."""
        flags = _FLAGS | os.O_CREAT
        try:
            fd = os.open(name, flags, _MODE, dir_fd=self._directory)
        except FileNotFoundError:
            self._open_directory()
            fd = os.open(name, flags, _MODE, dir_fd=self._directory)
        if self._known:
            log.warning(f"PRNG exchange file {self._path} was removed; made anew")
        return fd

    def _open_directory(self) -> None:
        """Open the directory of the file in place of the one that is open."""
        directory = os.open(os.path.dirname(self._path) or ".", os.O_PATH | os.O_DIRECTORY)
        self.close()
        self._directory = directory


def _lock(fd: int) -> bool:
    """Lock the file unless somebody else has."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reason(error: Exception) -> str:
    """Return the words for what went wrong."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "it is a symbolic link"
    return getattr(error, "strerror", None) or str(error)
