"""flood - a program that sends one kind of nonsense to a daemon, in a process of its own.

Run by tests as ``python flood.py PATH KIND SECONDS``; it uses no module of this project.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BOGUS_POLICY = b"request\0policy\0cache_type\0bogus\0\0"
ONE_BYTE_FIELDS = b"request\0seed\0" + b"a\0b\0" * 16_000
KINDS = {"bogus": BOGUS_POLICY, "fields": ONE_BYTE_FIELDS}


@contextlib.contextmanager
def flooding(path: str, kind: str, clients: int, seconds: float = 60.0) -> Iterator[None]:
    """Have this number of clients flood the daemon for the block."""
    command = [sys.executable, str(Path(__file__)), path, kind, str(seconds)]
    processes = [subprocess.Popen(command) for _ in range(clients)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _send(path: str, data: bytes, until: float) -> None:
    """Send until the server hangs up; read no more than it takes to go on."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.settimeout(1.0)
        while time.monotonic() < until:
            client.sendall(data)
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.recv(1 << 16)
            client.settimeout(1.0)


def main() -> None:
    """Run the program."""
    path, kind, seconds = sys.argv[1:]
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            _send(path, KINDS[kind], until)


if __name__ == "__main__":
    main()
