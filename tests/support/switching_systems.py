"""switching_systems - what tests of tlsmgr-postfix(8) need: its script, and systems to try it on

daemon_directory is one of ours, with links to the programs of Postfix that a system needs; nothing
else of the host's is linked, and no test may write through a link. Where something has to break,
the script is that of a private checkout: copies of the files, links to the packages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from support.checkout import CHECKOUT
from support.postfix_instance import PostfixInstance, postconf, wait_until

from tlsmgr.client import Client, TlsmgrError
from tlsmgr.install.instance import Postfix
from tlsmgr.install.launcher import NAME

ROOT = CHECKOUT
FIELDS = ("private", "unprivileged", "chroot", "wakeup", "process_limit", "command")
PROGRAMS = (
    "anvil", "bounce", "cleanup", "discard", "error", "master", "post-install", "postfix-script",
    "postlogd", "qmgr", "scache", "showq", "smtp", "smtpd", "tlsmgr", "trivial-rewrite",
)  # fmt: skip


class Outcome:
    """The output of the command, and its exit status."""

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


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Its outcome, when it has ended."""
    output, errors = process.communicate(timeout=120)
    return Outcome(subprocess.CompletedProcess([], process.returncode, output, errors))


def switch(system: PostfixInstance | str, *words: str, checkout: Path = ROOT) -> Outcome:
    """The script, run to its end."""
    return finish(command(system, *words, checkout=checkout))


def fields(system: PostfixInstance) -> list[str]:
    """The tlsmgr line of master.cf."""
    names = [f"tlsmgr/unix/{field}" for field in FIELDS]
    return [postconf("-c", str(system.config), "-F", "-h", name) for name in names]


def answers(system: PostfixInstance, seconds: float = 30.0) -> bool:
    """Whether a tlsmgr answers in that time."""
    try:
        with Client(system.socket, seconds) as client:
            return len(client.seed(32)) == 32
    except TlsmgrError:
        return False


def running(outcome: Outcome) -> str:
    """Which tlsmgr runs, as the command shows it."""
    (line,) = [line for line in outcome.said if "running: " in line]
    return line.partition("running: ")[2].partition(",")[0]


def running_now(system: PostfixInstance) -> str:
    """Which tlsmgr master(8) runs, by its processes."""
    found = Postfix(str(system.config)).tlsmgr()
    return "nothing" if found is None else NAME if found.ours else "tlsmgr"


def running_pid(system: PostfixInstance) -> int | None:
    """The process id of the tlsmgr that master(8) runs."""
    found = Postfix(str(system.config)).tlsmgr()
    return found.pid if found else None


def reload(system: PostfixInstance) -> None:
    """Reload it, and wait until the tlsmgr that ran has gone."""
    before = running_pid(system)
    system.postfix("reload")
    wait_until(lambda: before is None or running_pid(system) != before, 30)


def reload_to_postfixs_own(system: PostfixInstance) -> None:
    """Reload it, and wait until Postfix's own serves; workers of ours may answer at first."""
    reload(system)
    wait_until(lambda: answers(system) and running_now(system) == "tlsmgr", 30)


def private(farm: Path, **options: object) -> PostfixInstance:
    """A system with that daemon_directory, not started."""
    return PostfixInstance(parameters={"daemon_directory": str(farm)}, **options)  # type: ignore[arg-type]


def write_files(system: PostfixInstance) -> None:
    """The configuration of a system that is not started."""
    system.write_main_cf()
    (system.config / "master.cf").write_text(system.master_cf)


def make_farm(path: Path) -> Path:
    """A daemon_directory with links to Postfix's own programs, and to nothing else."""
    path.mkdir()
    host = Path(postconf("-d", "-h", "daemon_directory"))
    for name in PROGRAMS:
        (path / name).symlink_to(host / name)
    return path


def make_checkout(path: Path) -> Path:
    """A checkout in which every file can be replaced; only the packages are links."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("scripts", "tlsmgr"):
        shutil.copytree(ROOT / name, path / name, ignore=ignored)
    shutil.copy(ROOT / "setup.cfg", path / "setup.cfg")
    packages = site_packages(path)
    packages.mkdir(parents=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.suffix not in (".pth", ".egg-link"):
            (packages / entry.name).symlink_to(entry)
    (packages / "tlsmgr.pth").write_text(f"{path}\n")
    python = path / ".venv/bin/python"
    python.parent.mkdir()
    python.symlink_to(Path(sys.executable).resolve())
    home = python.resolve().parent
    (path / ".venv/pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    (path / ".venv/installed").write_text(f"{path}\n{python}\n")
    return path


def site_packages(checkout: Path) -> Path:
    """Where a private checkout has its packages."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return checkout / ".venv/lib" / version / "site-packages"


def wrap_python(checkout: Path, script: str) -> None:
    """Have a private checkout run this script for its Python; $real is what it had."""
    python = checkout / ".venv/bin/python"
    python.rename(python.with_name("real"))
    python.write_text(f'#!/bin/sh\nreal="{python.with_name("real")}"\n{script}')
    python.chmod(0o755)


def append(checkout: Path, module: str, code: str) -> None:
    """Have a module of a private checkout run this code at its end."""
    path = checkout / "tlsmgr" / module
    path.write_text(f"{path.read_text()}\n{code}\n")
