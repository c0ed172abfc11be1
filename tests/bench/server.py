"""server - a server that is measured: where it is, which processes it is, and what it has used

One may be found at a socket, whoever started it. Looking needs the right to read /proc of its
processes: root, or their user.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tlsmgr.log import Fatal

CACHE_FILE = "smtp_scache"  # how the name of the session cache's file begins
COMPLAINT = re.compile(r"(warning|error|fatal|panic): ")
BLOCK = 512  # bytes; of st_blocks, whatever the file system's are
CONNECT_LIMIT = 15.0  # seconds


@dataclass(frozen=True)
class Server:
    """A server that accepts connections."""

    name: str
    socket: str
    processes: Callable[[], list[psutil.Process]]  # all of them, now
    data: Path | None = None  # where its session caches are, if it is ours to fill and to grow
    log: Path | None = None
    workers: Callable[[], list[psutil.Process]] = list  # those that may be killed
    lenient: bool = False  # its replies only look right

    def cache_bytes(self) -> int:
        """Bytes that the session cache's file takes of the file system."""
        files = self.data.glob(f"{CACHE_FILE}*") if self.data is not None else ()
        return sum(BLOCK * f.stat().st_blocks for f in files if not f.name.endswith("-lock"))

    def memory(self) -> list[int]:
        """Bytes of proportional set size (PSS) of each process."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(int(process.memory_full_info().pss))
        return found

    def complaints(self) -> list[str]:
        """Lines of its log with a warning or worse."""
        if self.log is None or not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if COMPLAINT.search(line)]

    def file_system(self) -> str:
        """The type of the file system that the caches are on, such as ext4; "" for none."""
        if self.data is None:
            return ""
        mounts = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
        path = self.data.resolve()
        found = (mounts.get(str(place)) for place in (path, *path.parents))
        return next((kind for kind in found if kind), "")


def family(process: psutil.Process | None) -> list[psutil.Process]:
    """The process and all that come from it; none when it is gone."""
    if process is None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def listener(path: str) -> psutil.Process:
    """The process that was the first to listen at the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.connect(path)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return psutil.Process(struct.unpack("3i", credentials)[0])


def serving(path: str, first: psutil.Process) -> list[psutil.Process]:
    """Those of the listener's family that have the socket, but not master(8), which only listens.

    The path in the kernel's table may be relative to Postfix's queue directory.
    """
    table = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines())
    links = {f"socket:[{row[6]}]" for row in table if len(row) > 7 and path.endswith(row[7])}
    return [p for p in family(first) if _name(p) != "master" and links & _descriptors(p.pid)]


def _name(process: psutil.Process) -> str:
    """Its name, "" when it has gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.name())
    return ""


def _descriptors(pid: int) -> set[str]:
    """What the open descriptors of a process are."""
    found = set()
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(link))
    return found


def wait_for_socket(path: str) -> None:
    """Until a server accepts connections there. Fatal: none does for a while."""
    deadline = time.monotonic() + CONNECT_LIMIT
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                return probe.connect(path)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Fatal(f"cannot connect to {path}: {error.strerror}") from None
        time.sleep(0.01)
