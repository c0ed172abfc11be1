"""Where this program is: a checkout, a package, or what pip installed; and who may change it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tlsmgr.install import installation


def checkout(top: Path) -> Path:
    """Make a directory in the shape of a checkout."""
    for name in ("tlsmgr", "scripts", ".venv/bin"):
        (top / name).mkdir(parents=True)
    (top / ".venv/bin/python").symlink_to("/bin/sh")
    for name in ("tlsmgr/daemon.py", "scripts/tlsmgr-postfix", "setup.cfg", "setup.py"):
        (top / name).touch(mode=0o644)
    return top


def test_a_checkout_has_its_own_python(tmp_path: Path) -> None:
    found = installation.find(str(checkout(tmp_path)), "/usr/bin/python3")
    assert found.python == f"{tmp_path}/.venv/bin/python"
    assert found.command == f"{tmp_path}/scripts/tlsmgr-postfix"


def test_what_pip_installed_runs_with_the_python_that_has_it(tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3/site-packages"
    (packages / "tlsmgr").mkdir(parents=True)
    found = installation.find(str(packages), f"{tmp_path}/bin/python")
    assert found.python == f"{tmp_path}/bin/python"
    assert found.command == f"{tmp_path}/bin/tlsmgr-postfix"


@pytest.mark.parametrize(
    "name", ["tlsmgr/daemon.py", "scripts/tlsmgr-postfix", "setup.cfg", "setup.py", ".venv/bin", ""]
)
def test_what_others_may_change_is_named(tmp_path: Path, name: str) -> None:
    place = installation.find(str(checkout(tmp_path / "own")))
    before = set(place.unsafe_paths())  # empty for root, all of it for others
    path = tmp_path / "own" / name
    path.chmod(0o775)
    assert set(place.unsafe_paths()) == before | {str(path)}


def test_a_package_of_pip_that_others_may_change_is_named(tmp_path: Path) -> None:
    packages, programs = tmp_path / "lib/python3/site-packages", tmp_path / "bin"
    for directory in (packages / "tlsmgr", packages / "lmdb", programs):
        directory.mkdir(parents=True)
    files = [packages / "lmdb/cpython.so", programs / "tlsmgr-postfix", tmp_path / "pyvenv.cfg"]
    for file in files:
        file.touch(mode=0o644)
    (programs / "python").symlink_to("/bin/sh")
    place = installation.find(str(packages), f"{programs}/python")
    before = set(place.unsafe_paths())
    for file in files:
        file.chmod(0o664)
    assert set(place.unsafe_paths()) == before | {str(file) for file in files}


def test_a_file_with_an_old_time_that_came_later_is_new(tmp_path: Path) -> None:
    """A package gives its files the time at which it was built."""
    place = installation.find(str(checkout(tmp_path)))
    before = time.time()
    while time.time() < before + 0.05:  # a tick of the kernel's clock
        pass
    os.utime(tmp_path / "tlsmgr/daemon.py", (0, 0))
    assert before < place.newest() <= time.time()
