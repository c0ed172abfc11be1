"""stage - lay out the files of an installed package below a directory, for the .deb and the .rpm.

    stage.py WHEELS DIRECTORY REPAIR

WHEELS has the locked wheels for this interpreter; each is compared with scripts/locks/
and unpacked, nothing of it is executed. REPAIR is the command that installs the package again.

/usr/lib/tlsmgr has the shape of a checkout with its environment, so the launcher and the scripts
are the same as there. The mark ``packaged`` keeps the scripts from repairing it. Nothing is
compiled to bytecode here: the package does that when it is installed. The result depends on the
files of this tree, the wheels and the version of this interpreter alone. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ROOT / "scripts" / "package"
HOME = Path("/usr/lib/tlsmgr")
COMMANDS = {"tlsmgr-postfix": "sbin", "tlsmgr-start": "sbin", "tlsmgrctl": "bin"}
GROUPS = ("run", "metrics")  # of scripts/locks
TOOLS = ("environment.py", "run.py", "venv.sh", *(f"locks/{group}.lock" for group in GROUPS))
PAGE = "tlsmgr.8"  # which is the name of Postfix's page in Debian 13 and Fedora
PAGE_INSTALLED = "tlsmgr-prefork.8"
POSTFIX_OWN = "own\n"  # before a reference to Postfix's page
UNITS = "usr/lib/systemd/system"
PROFILES = "usr/share/apparmor/extra-profiles"
FILES = {  # of scripts/, and where they go
    "completion/tlsmgrctl": "usr/share/bash-completion/completions/tlsmgrctl",
    "package/apparmor/postfix-tlsmgr-prefork": f"{PROFILES}/postfix-tlsmgr-prefork",
    "package/systemd/sysusers.conf": "usr/lib/sysusers.d/tlsmgr.conf",
}


class Stage:
    """The tree below a directory, which gets the files as they will be below /."""

    def __init__(self, directory: Path) -> None:
        self._top = directory

    def copy(self, source: Path, target: str, mode: int = 0o644) -> None:
        """Copy a file."""
        self.write(target, source.read_bytes(), mode)

    def write(self, target: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file."""
        place = self._place(target)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        place.chmod(mode)

    def link(self, target: str, destination: str) -> None:
        """Make a symbolic link."""
        self._place(target).symlink_to(destination)

    def _place(self, target: str) -> Path:
        """Return where a path of the installed system is now; its directory exists."""
        place = self._top / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


def program(stage: Stage, repair: str) -> None:
    """Lay out the program: its modules, the scripts, and what these read."""
    for source in sorted((ROOT / "tlsmgr").rglob("*.py")):
        stage.copy(source, str(HOME / source.relative_to(ROOT)))
    for name in TOOLS:
        stage.copy(ROOT / "scripts" / name, f"{HOME}/scripts/{name}")
    stage.copy(ROOT / "setup.cfg", f"{HOME}/setup.cfg")
    stage.copy(PARTS / "files/maintain", f"{HOME}/scripts/maintain", 0o755)
    stage.write(f"{HOME}/packaged", f"{repair}\n")
    for name, directory in COMMANDS.items():
        stage.copy(ROOT / "scripts" / name, f"{HOME}/scripts/{name}", 0o755)
        stage.link(f"usr/{directory}/{name}", f"../lib/tlsmgr/scripts/{name}")


def environment(stage: Stage, wheels: Sequence[Path]) -> None:
    """Lay out the virtual environment, as Python's own module venv and pip would."""
    number = f"{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter = f"/usr/bin/python{number}"
    venv = f"{HOME}/.venv"
    packages = f"{venv}/lib/python{number}/site-packages"
    stage.write(
        f"{venv}/pyvenv.cfg",
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {number}\n",
    )
    stage.link(f"{venv}/bin/python", interpreter)
    stage.write(f"{packages}/tlsmgr.pth", f"{HOME}\n")
    for stamp in ("installed", "installed[metrics]"):
        stage.write(f"{venv}/{stamp}", f"{HOME}\n{interpreter}\n")
    locks = (ROOT / f"scripts/locks/{group}.lock" for group in GROUPS)
    locked = hashes("".join(lock.read_text() for lock in locks))
    for wheel in wheels:
        for name, content in contents(wheel, locked):
            stage.write(f"{packages}/{name}", content)


def hashes(lock: str) -> frozenset[str]:
    """Return the hashes in the text of a lock file."""
    return frozenset(re.findall(r"--hash=sha256:(\w+)", lock))


def contents(wheel: Path, locked: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files in a wheel. ValueError: it is not a locked one, or has more than modules."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() not in locked:
        raise ValueError(f"{wheel} is not a file of the lock file")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("/"):
                continue
            if ".data/" in name or name.startswith("/") or ".." in Path(name).parts:
                raise ValueError(f"{wheel}: cannot install {name}")
            yield name, archive.read(name)


def pages(stage: Stage) -> None:
    """Lay out the manual pages, the completion, the units and the examples."""
    for page in sorted((ROOT / "man").glob("*.[1-8]")):
        name = PAGE_INSTALLED if page.name == PAGE else page.name
        stage.write(f"usr/share/man/man{page.suffix[1:]}/{name}", renamed(page.read_text()))
    for unit in sorted((PARTS / "systemd").glob("*.[st]*")):
        stage.copy(unit, f"{UNITS}/{unit.name}")
    for name, target in FILES.items():
        stage.copy(ROOT / "scripts" / name, target)
    stage.write("usr/share/doc/tlsmgr/examples/tlsmgr.cf", example())


def renamed(page: str) -> str:
    """Return the text of a page, in which commands and the daemon's page have installed names."""
    for name, place in COMMANDS.items():
        page = page.replace(f"/opt/tlsmgr/scripts/{name}", f"/usr/{place}/{name}")
        page = page.replace(f"scripts/{name}", name)
    page = page.replace(".Dt TLSMGR 8\n", ".Dt TLSMGR-PREFORK 8\n")
    page = page.replace("\n.Nm tlsmgr\n.Nd ", "\n.Nm tlsmgr ,\n.Nm tlsmgr-prefork\n.Nd ")
    return re.sub(f"(?<!{POSTFIX_OWN})^\\.Xr tlsmgr 8", ".Xr tlsmgr-prefork 8", page, flags=re.M)


def example() -> str:
    """Return a tlsmgr.cf in which each parameter is a comment, with its purpose and default."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(ROOT))
    from tlsmgr.config.parameters import OURS

    lines = ["# tlsmgr.cf - parameters of tlsmgr beside main.cf. tlsmgr.cf(5) explains them.\n"]
    lines += [f"\n# {row.purpose}\n# {row.name} = {row.default}\n" for row in OURS]
    return "".join(lines)


def same_times(top: Path, seconds: int) -> None:
    """Give all files and directories that time, so that it does not depend on the build."""
    for directory, _, files in os.walk(top, topdown=False):
        for name in files:
            os.utime(f"{directory}/{name}", (seconds, seconds), follow_symlinks=False)
        os.chmod(directory, 0o755)
        os.utime(directory, (seconds, seconds))


def main(wheels: str, directory: str, repair: str) -> int:
    """Lay out everything; return the exit status."""
    os.umask(0o022)
    stage = Stage(Path(directory))
    program(stage, repair)
    environment(stage, sorted(Path(wheels).glob("*.whl")))
    pages(stage)
    same_times(Path(directory), int(os.environ["SOURCE_DATE_EPOCH"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
