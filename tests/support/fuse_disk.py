"""A file system whose server can be stopped or killed, as it happens with a network file system.

bindfs(1) serves a directory through FUSE. While it is stopped, calls wait for it, in a state in
which a process can be killed, unlike on a frozen disk. When it is killed all calls fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE = 10.0  # seconds for a mount


class FuseDisk:
    """The mounted directory, and the process that serves it."""

    def __init__(self, path: Path, server: subprocess.Popen[bytes]) -> None:
        self.path = path
        self._server = server

    def stop(self) -> None:
        """Have every call wait from now on."""
        os.kill(self._server.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer the calls that wait, and all others."""
        os.kill(self._server.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Have every call fail for good; the directory stays mounted."""
        self._server.kill()
        self._server.wait()


@contextlib.contextmanager
def fuse_disk(directory: Path) -> Iterator[FuseDisk]:
    """A directory below this one, mounted through FUSE."""
    program = shutil.which("bindfs")
    if program is None or os.geteuid() != 0:
        pytest.skip("needs bindfs, and root to mount with it")
    source, place = directory / "source", directory / "fuse"
    source.mkdir()
    place.mkdir()
    command = [program, "-f", "-o", "default_permissions", str(source), str(place)]
    server = subprocess.Popen(command, start_new_session=True)
    mounted = FuseDisk(place, server)
    try:
        deadline = time.monotonic() + PATIENCE
        while not os.path.ismount(place):
            if server.poll() is not None:
                pytest.skip("bindfs cannot mount here")
            assert time.monotonic() < deadline, "bindfs does not mount"
            time.sleep(0.01)
        yield mounted
    finally:
        mounted.kill()  # before anything looks at the directory: calls that wait end now
        subprocess.run(["umount", "--lazy", str(place)], check=False)
