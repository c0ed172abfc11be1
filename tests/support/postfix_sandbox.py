"""postfix_sandbox - directories, main.cf and log of a private Postfix system.

The base class of `StockTlsmgr` (stock tlsmgr(8) alone) and of `PostfixInstance` (a system under
master(8)). All files are in temporary directories of its own; nothing goes to the system's log.
The measuring tool uses this as well, so nothing here needs pytest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from support.settled_files import write_settled

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}
STOP_LIMIT = 15.0  # seconds; `postfix stop` itself resorts to force after 5

MAIN_CF = {
    # On a busy machine it can be over; without postlogd(8), all others wait for each other.
    "postlogd_watchdog_timeout": "600s",
    "compatibility_level": "3.6",
    "myhostname": "mail.test",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "mynetworks": "127.0.0.0/8",
    "mydestination": "",
    "alias_maps": "",
    "local_recipient_maps": "",
    "notify_classes": "",
}

_BUSY = re.compile(
    "log lines? (was|were) dropped|file system clock is 1 seconds ahead|resetting file time stamps"
)
_System = TypeVar("_System", bound="PostfixSandbox")


def postfix_missing(*map_types: str) -> str | None:
    """Return why no private Postfix with these table types can run here, or None if it can."""
    if os.geteuid() != 0:
        return "a private Postfix needs root"
    if shutil.which("postfix", path=ENVIRONMENT["PATH"]) is None:
        return "Postfix is not installed"
    with tempfile.TemporaryDirectory(prefix="pf-") as config:  # not the configuration of the host
        write_settled(Path(config, "main.cf"), "")
        missing = set(map_types) - set(postconf("-c", config, "-m").split())
    return f"Postfix lacks the table type {', '.join(sorted(missing))}" if missing else None


def postconf(*arguments: str) -> str:
    """Return the output of postconf(1) with these arguments, without the last newline."""
    command = ["postconf", *arguments]
    run = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
    return run.stdout.rstrip("\n")


@cache
def daemon_directory() -> str:
    """Return the directory of Postfix's programs."""
    return postconf("-d", "-h", "daemon_directory")


def wait_until(condition: Callable[[], object], timeout: float) -> None:
    """Wait until the condition is true. Raises TimeoutError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s")
        time.sleep(0.02)


@dataclass(kw_only=True, eq=False)
class PostfixSandbox:
    """A private Postfix system. `with` starts it; at the end it is stopped and removed."""

    cache_type: str = "btree"  # table type of the session caches: btree, hash, lmdb
    caches: Sequence[str] = ("smtpd", "smtp")  # which session caches are configured
    parent: str | None = None  # directory for all directories; None: that of temporary files
    data_parent: str | None = None  # directory for data_directory; None: beside the others
    parameters: Mapping[str, str] = field(default_factory=dict)  # for main.cf; override the others

    def __post_init__(self) -> None:
        self.directory = _new_directory(self.parent)
        self.data = _new_directory(self.data_parent or str(self.directory))
        self.config, self.queue = self.directory / "config", self.directory / "queue"
        self.log_file = self.directory / "log"
        self.socket = self.queue / "private" / "tlsmgr"
        self.config.mkdir()
        self.socket.parent.mkdir(parents=True)
        for owned in (self.data, self.socket.parent):
            shutil.chown(owned, "postfix")
            owned.chmod(0o700)
        self.main_cf = {**MAIN_CF, **self._places(), **self._databases(), **self.parameters}

    def _places(self) -> dict[str, str]:
        return {
            "queue_directory": str(self.queue),
            "data_directory": str(self.data),
            "maillog_file": str(self.log_file),
            "maillog_file_prefixes": str(self.directory),
        }

    def _databases(self) -> dict[str, str]:
        return {
            f"{cache}_tls_session_cache_database": f"{self.cache_type}:{self.data}/{cache}_scache"
            for cache in self.caches
        }

    def __enter__(self: _System) -> _System:
        try:
            self.start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is not None:
            print(f"--- log of {type(self).__name__} ---\n{self.log()}", file=sys.stderr)
        self.remove()

    def start(self) -> None:
        """Start the processes. Clients can connect when it returns."""
        raise NotImplementedError

    def stop(self) -> object:
        """Stop the processes. None is left when it returns; start() may follow."""
        raise NotImplementedError

    def remove(self) -> None:
        """Remove all directories."""
        for directory in (self.data, self.directory):
            shutil.rmtree(directory, ignore_errors=True)

    def write_main_cf(self) -> None:
        """Write self.main_cf."""
        text = "".join(f"{name} = {value}\n" for name, value in self.main_cf.items())
        write_settled(self.config / "main.cf", text)

    def log(self) -> str:
        """Return the log so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_lines(self, pattern: str) -> list[str]:
        """Return the log lines in which the regular expression is found."""
        return [line for line in self.log().splitlines() if re.search(pattern, line)]

    def complaints(self) -> list[str]:
        """Return the log lines of warnings and worse.

        What says only that this machine is busy is none: log lines that were dropped, and a second
        that passed between Postfix's look at the clock and the time of its file.
        """
        lines = self.log_lines("warning:|error:|fatal:|panic:")
        return [line for line in lines if not _BUSY.search(line)]

    def wait_log(self, pattern: str, count: int = 1, timeout: float = 30.0) -> list[str]:
        """Wait for at least `count` such lines and return all of them. May raise TimeoutError."""
        try:
            wait_until(lambda: len(self.log_lines(pattern)) >= count, timeout)
        except TimeoutError:
            seen = len(self.log_lines(pattern))
            raise TimeoutError(f"{seen} of {count} lines {pattern!r} in {timeout:g} s") from None
        return self.log_lines(pattern)


def _new_directory(parent: str | None) -> Path:
    """Make a directory whose name fits into a socket address and that mail_owner may enter."""
    path = Path(tempfile.mkdtemp(prefix="pf-", dir=parent))
    path.chmod(0o755)
    return path
