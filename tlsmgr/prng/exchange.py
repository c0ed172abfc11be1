"""exchange - carries pool entropy across restarts, in the file of tls_random_exchange_name.

Read, stir, write: up to 1024 bytes at the start of the file go into the pool, and then 1024 bytes
of the pool's output replace them, under an exclusive flock(2). Other programs that take that lock
may share the file, as Postfix's own tlsmgr does (tls_prng_exch.c).

The file is opened for each update, and created if need be, relative to its directory, which is
opened before the jail; so this works in the jail and in a process that is forked later: mode 0600,
no symbolic link, only a regular file. update() is called at start and by timer, save() at an
orderly end.

Nothing is fatal. Only the disk can make an update wait: the lock is tried, and while another
program holds it the update is postponed. A failure is a warning, repeated every ten minutes while
it lasts, and the update is tried again within a minute. A file that was removed is created again.
"""

import errno
import fcntl
import os
import stat
import time

from tlsmgr import log
from tlsmgr.prng.pool import EntropyError, Pool
from tlsmgr.prng.timers import WARNING_INTERVAL, next_delay, retry_delay

SIZE = 1024  # bytes; as in Postfix tls_prng_exch.c
LOCK_POLL = 0.1  # seconds between two tries for the lock
LOCK_PATIENCE = 10.0  # seconds after which a lock that another program holds is warned about
LOCK_REPOLL = 1.0  # seconds between two tries after that
SAVE_TRIES = 10  # for the lock at the end, SAVE_NAP apart
SAVE_NAP = 0.03  # seconds

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_MODE = 0o600


class ExchangeError(Exception):
    """The file cannot be used; the text says why."""


class ExchangeFile:
    """One exchange file; with an empty name there is none, and nothing is done."""

    def __init__(self, path: str, period: int, pool: Pool, directory: int = -1) -> None:
        """Take the values of tls_random_exchange_name and tls_random_prng_update_period.

        `period` is in seconds; `directory` is a descriptor of the directory, which is opened at the
        first update if it is not open.
        """
        self._path = path
        self._period = period
        self._pool = pool
        self._directory = directory
        self._existed = False
        self.updates = 0
        """How often the file was read and written by this process."""
        self.is_failing = False
        """Whether the latest try of an update failed."""
        self._locked_since: float | None = None
        self._limit = log.Limit(WARNING_INTERVAL)

    def update(self, now: float) -> float:
        """Read, stir, write; return the seconds after which to call again.

        `now` is the monotonic time in seconds.
        """
        if not self._path:
            return next_delay(self._period, self._pool)
        try:
            done = self._stir_and_write()
        except (OSError, ExchangeError, EntropyError) as error:
            self._report(_reason(error), now)
            return retry_delay(self._period, self._pool)
        if not done:
            return self._postpone(now)
        self._locked_since = None
        self.is_failing = False
        self._limit.over(f"PRNG exchange file {self._path}: works again")
        return next_delay(self._period, self._pool)

    def save(self) -> None:
        """Read, stir, write at an orderly end; after 0.3 s without the lock, warn and give up."""
        if not self._path:
            return
        try:
            for _ in range(SAVE_TRIES):
                if self._stir_and_write():
                    return
                time.sleep(SAVE_NAP)
            reason = "locked by another program"
        except (OSError, ExchangeError, EntropyError) as error:
            reason = _reason(error)
        log.warning(f"PRNG exchange file {self._path}: not saved: {reason}")

    def _postpone(self, now: float) -> float:
        """Return the seconds until the lock is tried again; warn when that goes on for long."""
        if self._locked_since is None:
            self._locked_since = now
        if now - self._locked_since < LOCK_PATIENCE:
            return LOCK_POLL
        self._report("locked by another program, update postponed", now)
        return LOCK_REPOLL

    def _stir_and_write(self) -> bool:
        """Read, stir, write; return False if the file is locked, or was removed meanwhile."""
        fd = self._open_file()
        try:
            if not _lock(fd) or not os.fstat(fd).st_nlink:
                return False
            self._pool.stir(os.pread(fd, SIZE, 0))
            written = os.pwrite(fd, self._pool.extract(SIZE), 0)
        finally:
            os.close(fd)  # this unlocks it
        if written != SIZE:
            raise ExchangeError(f"only {written} of {SIZE} bytes could be written")
        self.updates += 1
        return True

    def _open_file(self) -> int:
        """Open the file, create it if need be; raise OSError or ExchangeError."""
        if self._directory < 0:
            self._open_directory()
        name = os.path.basename(self._path)
        try:
            fd = os.open(name, _FLAGS, dir_fd=self._directory)
        except FileNotFoundError:
            fd = self._create_file(name)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ExchangeError("it is not a regular file")
            if stat.S_IMODE(status.st_mode) != _MODE:
                os.fchmod(fd, _MODE)
        except BaseException:
            os.close(fd)
            raise
        self._existed = True
        return fd

    def _create_file(self, name: str) -> int:
        """Create the file; its directory may have been removed and made again as well."""
        flags = _FLAGS | os.O_CREAT
        try:
            fd = os.open(name, flags, _MODE, dir_fd=self._directory)
        except FileNotFoundError:
            self._open_directory()
            fd = os.open(name, flags, _MODE, dir_fd=self._directory)
        if self._existed:
            log.warning(f"PRNG exchange file {self._path} was removed; created a new one")
        return fd

    def _open_directory(self) -> None:
        """Open the directory of the file, and close the one that was open."""
        directory = os.open(os.path.dirname(self._path) or ".", os.O_PATH | os.O_DIRECTORY)
        if self._directory >= 0:
            os.close(self._directory)
        self._directory = directory

    def _report(self, reason: str, now: float) -> None:
        """Log a failure, but not each time."""
        self.is_failing = True
        self._limit.warning(reason, f"PRNG exchange file {self._path}: {reason}", now)


def _lock(fd: int) -> bool:
    """Lock the file; return False if another program has it locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reason(error: Exception) -> str:
    """Return the text for an error."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "it is a symbolic link"
    return getattr(error, "strerror", None) or str(error)
