"""sandbox - what private Postfix systems have in common: directories, main.cf, log

The base of stock tlsmgr(8) alone, in stock, and of whole systems, which the tests have. It
promises that all is in temporary directories of its own, and that nothing goes to the system's log.
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
from pathlib import Path
from typing import TypeVar

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}
STOP_LIMIT = 15.0  # seconds; `postfix stop` itself resorts to force after 5

MAIN_CF = {
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

_System = TypeVar("_System", bound="PostfixSandbox")


def postfix_missing(*map_types: str) -> str | None:
    """Why there can be no private Postfix here, with tables of those types; None if there can."""
    if os.geteuid() != 0:
        return "a private Postfix needs root"
    if shutil.which("postfix", path=ENVIRONMENT["PATH"]) is None:
        return "Postfix is not installed"
    with tempfile.TemporaryDirectory(prefix="pf-") as config:  # not the host's configuration
        Path(config, "main.cf").touch()
        missing = set(map_types) - set(postconf("-c", config, "-m").split())
    return f"Postfix lacks the table type {', '.join(sorted(missing))}" if missing else None


def postconf(*arguments: str) -> str:
    """The output of postconf(1) with those arguments, without the last newline."""
    command = ["postconf", *arguments]
    run = subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True)
    return run.stdout.rstrip("\n")


def wait_until(condition: Callable[[], object], timeout: float) -> None:
    """Wait for the condition to become true; TimeoutError when it does not within the seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s")
        time.sleep(0.02)


@dataclass(kw_only=True, eq=False)
class PostfixSandbox:
    """Directories, main.cf and log of one system. `with` starts it, stops it and removes all."""

    cache_type: str = "btree"  # table type of the session caches: btree, hash, lmdb
    caches: Sequence[str] = ("smtpd", "smtp")  # which session caches are configured
    data_parent: str | None = None  # where data_directory goes, such as /dev/shm; None: beside
    parameters: Mapping[str, str] = field(default_factory=dict)  # more for main.cf; these win

    def __post_init__(self) -> None:
        self.directory = _new_directory(None)
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
        """Start the processes; clients can connect when it returns."""
        raise NotImplementedError

    def stop(self) -> object:
        """Stop the processes; none is left when it returns. Start may follow."""
        raise NotImplementedError

    def remove(self) -> None:
        """Remove all directories."""
        for directory in (self.data, self.directory):
            shutil.rmtree(directory, ignore_errors=True)

    def write_main_cf(self) -> None:
        """Write self.main_cf, old by its time stamp: Postfix waits for up to 2 s on a new file."""
        path = self.config / "main.cf"
        path.write_text("".join(f"{name} = {value}\n" for name, value in self.main_cf.items()))
        os.utime(path, (time.time() - 60,) * 2)

    def log(self) -> str:
        """All that was logged so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_lines(self, pattern: str) -> list[str]:
        """The logged lines in which the regular expression is found."""
        return [line for line in self.log().splitlines() if re.search(pattern, line)]

    def wait_log(self, pattern: str, count: int = 1, timeout: float = 30.0) -> list[str]:
        """Wait until there are `count` such lines; all there are. TimeoutError after `timeout`."""
        try:
            wait_until(lambda: len(self.log_lines(pattern)) >= count, timeout)
        except TimeoutError:
            seen = len(self.log_lines(pattern))
            raise TimeoutError(f"{seen} of {count} lines {pattern!r} in {timeout:g} s") from None
        return self.log_lines(pattern)


def _new_directory(parent: str | None) -> Path:
    """A temporary directory with a short name, for sun_path, that mail_owner may pass through."""
    path = Path(tempfile.mkdtemp(prefix="pf-", dir=parent))
    path.chmod(0o755)
    return path
