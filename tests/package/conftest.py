"""Fixtures that the tests of the packages share: they are made once a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import debian_root
from support.debian_root import DebianRoot


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRoot]:
    """A Debian system with Postfix, which no test changes."""
    path = tmp_path_factory.mktemp("debian") / "root"
    yield debian_root.make(path)
    shutil.rmtree(path)  # nothing is mounted there outside the namespaces of a command


@pytest.fixture(scope="session")
def package(fresh: DebianRoot) -> Path:
    """The .deb of this checkout."""
    return debian_root.build("deb")


@pytest.fixture
def root(fresh: DebianRoot, package: Path, tmp_path: Path) -> Iterator[DebianRoot]:
    """A copy of that system, with the package in /tlsmgr.deb, not installed."""
    copy = fresh.copy(tmp_path / "root")
    shutil.copyfile(package, copy.path / "tlsmgr.deb")
    yield copy
    shutil.rmtree(copy.path)
