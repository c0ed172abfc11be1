"""switching_systems - what tests of tlsmgr-postfix(8) need: its script, and systems to try it on

daemon_directory is a farm of links, so that Postfix's own is not touched. Where something has to
break, the script is that of a private checkout: links to this one, but for a Python of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.checkout import CHECKOUT
from support.postfix_instance import PostfixInstance, postconf

from tlsmgr.client import Client, TlsmgrError
from tlsmgr.install.instance import Instance

ROOT = CHECKOUT
FIELDS = ("private", "unprivileged", "chroot", "wakeup", "process_limit", "command")
GOOD_PYTHON = f'#!/bin/sh\nexec {sys.executable} "$@"\n'


class Outcome:
    """What the command said, and its exit status."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        self.said = done.stdout.splitlines()
        self.complained = done.stderr.splitlines()
        self.text = done.stdout + done.stderr

    def fatal(self) -> str:
        """The one line of why it failed."""
        assert self.status == 1, self.text
        (line,) = [line for line in self.complained if "fatal: " in line]
        return line.partition("fatal: ")[2]


def command(
    system: PostfixInstance | str, *words: str, checkout: Path = ROOT
) -> subprocess.Popen[str]:
    """The script, started."""
    config = system if isinstance(system, str) else str(system.config)
    return subprocess.Popen(
        [str(checkout / "scripts/tlsmgr-postfix"), *words, "-c", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def switch(system: PostfixInstance | str, *words: str, checkout: Path = ROOT) -> Outcome:
    """The script, run to its end."""
    process = command(system, *words, checkout=checkout)
    output, errors = process.communicate(timeout=120)
    return Outcome(subprocess.CompletedProcess(process.args, process.returncode, output, errors))


def fields(system: PostfixInstance) -> list[str]:
    """The tlsmgr line of master.cf."""
    names = [f"tlsmgr/unix/{field}" for field in FIELDS]
    return [postconf("-c", str(system.config), "-F", "-h", name) for name in names]


def answers(system: PostfixInstance, seconds: float = 10.0) -> bool:
    """Whether a tlsmgr answers in that time."""
    try:
        with Client(system.socket, seconds) as client:
            return client.policy("smtp").cachable
    except TlsmgrError:
        return False


def running(outcome: Outcome) -> str:
    """Which tlsmgr runs by what the command said."""
    (line,) = [line for line in outcome.said if "running: " in line]
    return line.partition("running: ")[2].partition(",")[0]


def running_pid(system: PostfixInstance) -> int | None:
    """The process id of the tlsmgr that master(8) runs."""
    found = Instance(str(system.config)).tlsmgr()
    return found.pid if found else None


def set_python(checkout: Path, script: str) -> None:
    """Have a private checkout run this script for its Python."""
    python = checkout / ".venv/bin/python"
    python.write_text(script)
    python.chmod(0o755)


def private(farm: Path, **options: object) -> PostfixInstance:
    """A system with that daemon_directory, not started."""
    return PostfixInstance(parameters={"daemon_directory": str(farm)}, **options)  # type: ignore[arg-type]


def write_files(system: PostfixInstance) -> None:
    """The configuration of a system that is not started."""
    system.write_main_cf()
    (system.config / "master.cf").write_text(system.master_cf)


def make_farm(path: Path) -> Path:
    """A daemon_directory with links to the real one's programs."""
    path.mkdir()
    for program in Path(postconf("-d", "-h", "daemon_directory")).iterdir():
        (path / program.name).symlink_to(program)
    return path


def make_checkout(path: Path) -> Path:
    """A checkout whose Python can be replaced."""
    (path / ".venv/bin").mkdir(parents=True)
    for name in ("scripts", "tlsmgr", "setup.cfg"):
        (path / name).symlink_to(ROOT / name)
    (path / ".venv/installed").touch()
    set_python(path, GOOD_PYTHON)
    return path
