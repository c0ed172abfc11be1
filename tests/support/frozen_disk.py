"""A file system that can be frozen, so that all who write to it are blocked in the kernel."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1 << 20
PROGRAMS = {"mkfs.ext4": "e2fsprogs", "fsfreeze": "util-linux"}  # and their packages in Debian

THAW_WHEN_CLOSED = 'read -r line; exec fsfreeze -u "$0"'


class Disk:
    """An ext4 file system in a file. No process of a test may write to it while it is frozen.

    A process of its own thaws it at the end of a pipe: also when the tests are killed meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard: subprocess.Popen[bytes] | None = None

    def freeze(self) -> None:
        """Block all writes, as a snapshot does."""
        command = ["sh", "-c", THAW_WHEN_CLOSED, str(self.path)]
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            subprocess.run(["fsfreeze", "-f", str(self.path)], check=True)
        except BaseException:
            guard.kill()
            guard.wait()
            raise
        self._guard = guard

    def thaw(self) -> None:
        """Let writes go on."""
        if self._guard is not None:
            guard, self._guard = self._guard, None
            assert guard.stdin is not None
            guard.stdin.close()
            assert guard.wait() == 0, "cannot thaw"


@contextlib.contextmanager
def disk(directory: Path, size: int = 64 * MIB) -> Iterator[Disk]:
    """A disk of this size in bytes, mounted below the directory."""
    if os.geteuid() != 0:
        pytest.skip("cannot mount a file system: needs root")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install {package}")
    image, place = directory / "image", directory / "disk"
    with open(image, "wb") as file:
        file.truncate(size)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    mount = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a file system: {mount.stderr.decode().strip()}")
    place.chmod(0o755)
    mounted = Disk(place)
    try:
        yield mounted
    finally:
        mounted.thaw()
        subprocess.run(["umount", "--lazy", str(place)], check=True)
