"""environment - the Python side of venv.sh: what .venv must hold, whether it does, and its stamp.

    environment.py names EXTRAS    print the names of the packages that setup.cfg requires
    environment.py check EXTRAS    import each of them, and see that no file of any package is
                                   missing; exit status 1 and a line if one is, or fails
    environment.py stamp EXTRAS    let the environment find the checkout; write the stamp
    environment.py base            print the interpreter that environments of this Python link to

EXTRAS is "" or, for example, "[test]". Run by root, before any package is installed: standard
library only.
"""

import configparser
import csv
import importlib
import importlib.metadata
import os
import re
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def requirements(extras: str) -> list[str]:
    """Return the requirements of setup.cfg with those of the extras."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"]
    for extra in re.findall(r"\w+", extras):
        lines += config["options.extras_require"][extra]
    return [line.strip() for line in lines.splitlines() if line.strip()]


def name_of(requirement: str) -> str:
    """Return the name of the package, which is also that of its module."""
    (name,) = re.findall(r"^\w+", requirement)
    return str(name)


def check(extras: str) -> int:
    """Import each package, which has the name of its distribution; return the exit status."""
    for requirement in requirements(extras):
        name = name_of(requirement)
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"cannot import {name}: {error}")
            return 1
    lacking = missing_file()
    if lacking:
        print(lacking)
    return 1 if lacking else 0


def missing_file() -> str | None:
    """Return a text on the first file that an installed package lacks, or None.

    Imports do not show all of them: cryptography imports cffi, which nobody names, later.
    """
    for package in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]):
        record = package.read_text("RECORD") or ""  # package.files leaves out what is missing
        for name, *_ in filter(None, csv.reader(record.splitlines())):
            if name.endswith((".pyc", ".pth")) or name.startswith("../"):  # not imported
                continue
            if not os.path.exists(str(package.locate_file(name))):
                return f"package {package.metadata['Name']} lacks {name}"
    return None


def stamp(extras: str) -> None:
    """Write the stamp that is_ready of venv.sh reads, and the path file."""
    (Path(sysconfig.get_path("purelib")) / "tlsmgr.pth").write_text(f"{ROOT}\n")
    text = f"{ROOT}\n{os.path.realpath(sys.executable)}\n"
    (ROOT / ".venv" / f"installed{extras}").write_text(text)


def base() -> str:
    """Return the interpreter itself, where this one is that of an environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def main(command: str, extras: str = "") -> int:
    """Return the exit status."""
    if command == "check":
        return check(extras)
    if command == "stamp":
        stamp(extras)
    else:
        print(base() if command == "base" else " ".join(map(name_of, requirements(extras))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
