"""The load generator, compiled once for all tests of this directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.drive import NO_COMPILER, build, compiler


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program. Skips the test where there is no C compiler."""
    if compiler() is None:
        pytest.skip(NO_COMPILER)
    return build("generator", tmp_path_factory.mktemp("generator"))
