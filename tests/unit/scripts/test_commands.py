"""The scripts as commands: help and version without an environment, links, readers that go."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.small_checkout import SmallCheckout

from tlsmgr import __version__

SCRIPTS = (
    "tlsmgr-start",
    "tlsmgr-postfix",
    "tlsmgrctl",
    "tlsmgr-test",
    "tlsmgr-bench",
    "tlsmgr-lock",
    "tlsmgr-package",
)


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
def test_help_fits_a_terminal_of_80_columns(tmp_path: Path, name: str) -> None:
    for root in (SmallCheckout(tmp_path / "own").root, CHECKOUT):
        shown = run(root / "scripts" / name, "--help").stdout
        assert [line for line in shown.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_symbolic_link_to_a_script_works(tmp_path: Path, name: str) -> None:
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / name
    link.symlink_to(CHECKOUT / "scripts" / name)
    (tmp_path / name).symlink_to(f"bin/{name}")
    for path in (link, tmp_path / name):
        assert run(path, "--version").stdout == f"{name} {__version__}\n"


@pytest.mark.parametrize(("command", "status"), [("status", 2), ("disable", 1)])
def test_a_damaged_checkout_is_one_line_that_shows_the_way_out(
    tmp_path: Path, command: str, status: int
) -> None:
    checkout = SmallCheckout(tmp_path / "own")
    (checkout.root / "tlsmgr").unlink()
    (checkout.root / "tlsmgr/install").mkdir(parents=True)
    (checkout.root / "tlsmgr/install/__main__.py").write_text("def (\n")
    done = run(checkout.root / "scripts/tlsmgr-postfix", command)
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"tlsmgr-postfix: fatal: the checkout {checkout.root} is damaged: SyntaxError: "
    )
    assert line.endswith("postconf -F tlsmgr/unix/command=tlsmgr && postfix reload")


def test_status_is_no_success_when_the_interpreter_is_an_empty_file(tmp_path: Path) -> None:
    checkout = SmallCheckout(tmp_path / "own")
    checkout.python.parent.mkdir(parents=True)
    checkout.python.touch(0o755)
    done = run(checkout.root / "scripts/tlsmgr-postfix", "-c", "/nonexistent", "status")
    assert done.returncode == 2
    assert done.stderr.startswith("tlsmgr-postfix: fatal: ")


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
    reason = "No such file or directory; no tlsmgr serves there"
    assert done.stderr == f"tlsmgrctl: connect to /nonexistent: {reason}\n"
    assert not (checkout.root / ".venv").exists()


@pytest.fixture
def debian(tmp_path: Path, quick: Path) -> SmallCheckout:
    """A checkout with tlsmgr-test, and before it in PATH: the commands of a Debian system.

    They lack mandoc, have the packages that the file ``agents`` lists, and record what apt-get is
    asked for.
    """
    checkout, commands = SmallCheckout(tmp_path / "own", quick), tmp_path / "bin"
    commands.mkdir()
    texts = {
        "id": "echo 0",
        "postconf": f"echo {tmp_path}/sbin",
        "apt-get": f'echo "$*" >>{tmp_path}/asked',
        "dpkg-query": 'case "$*" in *" mandoc") ;; *Provides*) cat '
        f"{tmp_path}/agents;; *) echo installed;; esac",
    }
    for name, text in texts.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "sbin").mkdir()
    (tmp_path / "agents").write_text("installed\tpostfix\tmail-transport-agent\n")
    checkout.settings.write_text(checkout.settings.read_text().replace("more =", "test ="))
    return checkout


def tlsmgr_test(checkout: SmallCheckout) -> str:
    """The output of tlsmgr-test there; it fails in the end because ruff is missing."""
    commands = checkout.root.parent / "bin"
    done = subprocess.run(
        [checkout.root / "scripts/tlsmgr-test"],
        env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    return done.stderr


def test_packages_are_named_and_nothing_is_removed_for_them(debian: SmallCheckout) -> None:
    assert "tlsmgr-test: installs the Debian packages mandoc\n" in tlsmgr_test(debian)
    (_, install) = (debian.root.parent / "asked").read_text().splitlines()
    assert install.split()[-1] == "mandoc"
    assert "--no-remove" in install.split()


def test_another_mail_transport_agent_is_left_alone(debian: SmallCheckout) -> None:
    with (debian.root.parent / "agents").open("a") as agents:
        agents.write("installed\texim4\tdefault-mta, mail-transport-agent\n")
    assert "exim4 is installed: leaves Debian's packages alone" in tlsmgr_test(debian)
    assert not (debian.root.parent / "asked").exists()


def test_a_host_that_runs_this_program_is_left_alone(debian: SmallCheckout) -> None:
    launcher = debian.root.parent / "sbin" / "tlsmgr-prefork"
    launcher.write_text("")
    assert f"tlsmgr-test: fatal: {launcher} is installed" in tlsmgr_test(debian)
    assert not (debian.root / ".venv").exists()


@pytest.mark.parametrize("arguments", [("--plot", "x", "log"), ("log", "--plot=x")])
def test_a_package_has_no_matplotlib(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """In a checkout, the same would be fetched."""
    checkout = SmallCheckout(tmp_path / "own")
    (checkout.root / "packaged").write_text("install it again\n")
    done = run(checkout.root / "scripts/tlsmgrctl", "report", *arguments)
    assert done.returncode == 1
    assert done.stderr.endswith("does not have what this needs; a checkout fetches it\n")
