"""A file system that can be frozen, so that all who write to it are blocked in the kernel."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1 << 20


class Disk:
    """An ext4 file system in a file. No process of a test may write to it while it is frozen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frozen = False

    def freeze(self) -> None:
        """Block all writes, as a snapshot does."""
        subprocess.run(["fsfreeze", "-f", str(self.path)], check=True)
        self._frozen = True

    def thaw(self) -> None:
        """Let writes go on."""
        if self._frozen:
            subprocess.run(["fsfreeze", "-u", str(self.path)], check=True)
            self._frozen = False


@contextlib.contextmanager
def disk(directory: Path, size: int = 64 * MIB) -> Iterator[Disk]:
    """A disk of this size in bytes, mounted below the directory."""
    if os.geteuid() != 0:
        pytest.skip("cannot mount a file system: needs root")
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
