"""The wheel: built twice, installed by pip from locked files, with no checkout and no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import debian_root
from support.checkout import CHECKOUT
from support.debian_root import CONFIGURE, SEND, DebianRoot

import tlsmgr

pytestmark = pytest.mark.long

COMMANDS = ("tlsmgr-postfix", "tlsmgr-start", "tlsmgrctl")
PIP = ("-I", "-m", "pip", "--isolated", "--disable-pip-version-check", "--quiet")
TIME_LIMIT = 300.0  # seconds for one command


def run(*command: str | Path, **environment: str) -> str:
    """Run it from /, with that environment alone; return its output."""
    done = subprocess.run(
        command,
        cwd="/",
        env={"PATH": os.defpath, **environment},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel of this checkout, and with the locked ones that it needs."""
    directory = tmp_path_factory.mktemp("wheels")
    lock = CHECKOUT / "scripts/locks/run.lock"
    options = ("--require-hashes", "--only-binary", ":all:", "--dest", directory)
    run(sys.executable, *PIP, "download", *options, "--requirement", lock)
    shutil.copy(debian_root.build("wheel"), directory)
    return directory


@pytest.fixture(scope="module")
def environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment into which pip installed it."""
    path = tmp_path_factory.mktemp("wheel") / "environment"
    run(sys.executable, "-I", "-m", "venv", path)
    install(path, wheels)
    return path


def install(environment: Path, wheels: Path) -> None:
    options = ("--no-index", "--find-links", wheels)
    run(environment / "bin/python", *PIP, "install", *options, "tlsmgr")


def test_two_builds_are_the_same(wheels: Path) -> None:
    (first,) = wheels.glob("tlsmgr-*.whl")
    assert debian_root.build("wheel").read_bytes() == first.read_bytes()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_there(environment: Path, command: str) -> None:
    program = environment / "bin" / command
    assert run(program, "--version") == f"{command} {tlsmgr.__version__}\n"
    assert run(program, "--help").startswith(f"usage: {command} ")


def test_the_pages_and_the_completion_are_those_of_the_checkout(environment: Path) -> None:
    share = environment / "share"
    for page in (CHECKOUT / "man").glob("*.[1-8]"):
        installed = share / "man" / f"man{page.suffix[1:]}" / page.name
        assert installed.read_bytes() == page.read_bytes()
    completion = share / "bash-completion/completions/tlsmgrctl"
    assert completion.read_bytes() == (CHECKOUT / "scripts/completion/tlsmgrctl").read_bytes()


@pytest.fixture
def served(environment: Path, tmp_path: Path) -> Iterator[str]:
    """The socket of a daemon that was started by hand."""
    state = {"XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": os.defpath}
    command = [str(environment / "bin/tlsmgr-start"), "-c", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=state, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()
        assert process.wait(TIME_LIMIT) == 0


def test_it_serves(environment: Path, served: str) -> None:
    control = (environment / "bin/tlsmgrctl", "--socket", served)
    assert len(run(*control, "seed", "32")) == len("A" * 44 + "\n")
    assert f"tlsmgr {tlsmgr.__version__}" in run(*control, "status")


def test_mail_with_resumption_through_it(fresh: DebianRoot, wheels: Path, tmp_path: Path) -> None:
    """Installed by pip on a mail host without a network, and removed again."""
    root = fresh.copy(tmp_path / "root")
    root.run("apt-get -qq -y --no-install-recommends install python3.11-venv", network=True)
    shutil.copytree(wheels, root.path / "wheels")
    said = root.run(
        f"set -e; {CONFIGURE} {SEND} cp /etc/postfix/master.cf /tmp/;"
        "python3.11 -m venv /opt/tlsmgr; PATH=/opt/tlsmgr/bin:$PATH;"
        "pip install --quiet --no-index --find-links /wheels tlsmgr;"
        "postfix start; tlsmgr-postfix enable; tlsmgr-postfix status; send 1; send 2;"
        "cat /var/log/mail.log; tlsmgr-postfix disable;"
        "cmp /etc/postfix/master.cf /tmp/master.cf; postfix stop"
    )
    assert "\n/etc/postfix: ours serves\n" in said
    assert said.count("Reusing old session") == 1
    assert not re.search(r"tlsmgr\[\d+\]: (warning|error|fatal|panic)", said)
