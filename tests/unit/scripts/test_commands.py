"""The scripts as commands: help and version without an environment, links, readers that go."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.small_checkout import SmallCheckout

from tlsmgr import __version__

SCRIPTS = ("tlsmgr-start", "tlsmgrctl", "tlsmgr-test", "tlsmgr-bench")


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [path, *arguments], capture_output=True, text=True, check=False, timeout=60, cwd="/"
    )


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_version_need_no_environment(tmp_path: Path, name: str, option: str) -> None:
    checkout = SmallCheckout(tmp_path / "own")
    done = run(checkout.root / "scripts" / name, option)
    assert (done.returncode, done.stderr) == (0, "")
    if option == "--version":
        assert done.stdout == f"{name} {__version__}\n"
    else:
        assert done.stdout.startswith(f"usage: {name} ")
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_symbolic_link_to_a_script_works(tmp_path: Path, name: str) -> None:
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / name
    link.symlink_to(CHECKOUT / "scripts" / name)
    (tmp_path / name).symlink_to(f"bin/{name}")
    for path in (link, tmp_path / name):
        assert run(path, "--version").stdout == f"{name} {__version__}\n"


@pytest.mark.parametrize("name", ["tlsmgr-start", "tlsmgrctl"])
def test_a_reader_that_has_gone_is_no_error(name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [CHECKOUT / "scripts" / name, "--help"],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_tlsmgrctl_runs_without_an_environment(tmp_path: Path) -> None:
    checkout = SmallCheckout(tmp_path / "own")
    done = run(checkout.root / "scripts/tlsmgrctl", "--socket", "/nonexistent", "seed", "32")
    assert done.returncode == 1
    assert done.stderr == "tlsmgrctl: connect to /nonexistent: No such file or directory\n"
    assert not (checkout.root / ".venv").exists()
