"""An environment that venv.sh has made, once for all tests of this directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_checkout import SmallCheckout, quick_python


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> SmallCheckout:
    """A checkout whose environment was made."""
    checkout = SmallCheckout(tmp_path_factory.mktemp("made") / "check out")
    status, said = checkout.call("use_venv ''")
    assert status == 0, said
    assert said[0].startswith(
        f"tlsmgr-start: makes a virtual environment in {checkout.root}/.venv with /"
    )
    assert "fetches what is missing of thing from the Python Package Index" in said[1]
    assert len(said) == 2
    assert checkout.works()
    return checkout


@pytest.fixture(scope="session")
def quick(made: SmallCheckout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that makes an environment by copying that one, without what was installed."""
    return quick_python(tmp_path_factory.mktemp("quick"), made)
