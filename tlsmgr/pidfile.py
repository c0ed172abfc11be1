"""pidfile - the process id of the parent in a file, while it runs.

For the standalone daemon. The file is replaced by renaming, so that a reader finds a whole
line, and no other name of an earlier file is written to. Only a pid file is replaced, and only
when its process has gone: a link, other text, and the file of a process that runs are refused. A
process that started after the file was written is another one with the same number.

Fatal: everything that goes wrong at the start. The removal at the end fails silently.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from tlsmgr.log import Fatal

CONTENT = re.compile(rb"(\d{1,10}\n?)?")  # an empty file is as good: mktemp(1) makes one
CLOCK_ERROR = 1.0  # seconds between the kernel's start time and the file's time stamp


@contextlib.contextmanager
def pid_file(path: str, is_written: bool = False) -> Iterator[None]:
    """Keep the process id in the file; remove it at the end, if it still says that.

    ``is_written``: an earlier run of this process has made the file.
    """
    ours = f"{os.getpid()}\n"
    try:
        if not is_written:
            _refuse_others(path)
            _replace(path, ours)
    except OSError as error:
        raise Fatal(f"cannot write {path}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if Path(path).read_text() == ours:
                os.unlink(path)


def _refuse_others(path: str) -> None:
    """Raise Fatal unless the path is free or has the pid file of a process that has gone."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    text = Path(path).read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size < 16 else b"-"
    if not CONTENT.fullmatch(text):
        raise Fatal(f"{path} exists and is not a pid file")
    if text and _started(int(text)) <= status.st_mtime + CLOCK_ERROR:
        raise Fatal(f"{path} is the pid file of process {int(text)}, which runs")


def _started(pid: int) -> float:
    """Return when that process started, in seconds of time.time(); infinity if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return math.inf
    ticks = int(fields[19])  # proc(5): field 22 is the time after boot
    uptime = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + uptime


def _replace(path: str, text: str) -> None:
    new = f"{path}.{os.getpid()}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "w") as file:
            file.write(text)
        os.rename(new, path)
    except BaseException:
        os.unlink(new)
        raise
