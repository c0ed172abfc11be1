"""lock - the Python side of tlsmgr-lock: choose a version of every package, and note its hashes.

For each group of packages in setup.cfg (what the daemon imports, and each extra) there is a file
in scripts/locks/. It names the whole group with all that it depends on, and for each the SHA-256
of its source and of every wheel that a supported system may use. A version is the same in all
files. pip installs from these files alone, so an index, a mirror or a proxy can refuse a package,
but cannot give another one.

uv(1) chooses the versions, for all supported Pythons at once; pip cannot do that. It is a locked
package itself. For developers: needs a network, and Python 3.11 or later.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "scripts" / "locks"
RUN = "run"  # the group that the daemon imports
OLDEST = "3.10"
ALWAYS = f"python_full_version >= '{OLDEST}'"
WHEEL = re.compile(
    r"-(py3|py2\.py3|cp3\d+)-(none|abi3|cp31[0-4])-(any|.*linux.*_(x86_64|aarch64))\.whl$"
)
HEAD = """\
# Written by scripts/tlsmgr-lock from setup.cfg; do not edit.
# For pip: --require-hashes --requirement THIS FILE

"""


def groups() -> Mapping[str, Sequence[str]]:
    """Return the requirements of setup.cfg: of the daemon, and of each extra."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    texts = {RUN: config["options"]["install_requires"], **config["options.extras_require"]}
    return {name: text.split() for name, text in texts.items()}


def entries(lock: Mapping[str, Any]) -> Iterator[str]:
    """Yield a requirement for pip for each package of a pylock.toml."""
    for package in lock["packages"]:
        marker = package.get("marker", ALWAYS).removeprefix(f"{ALWAYS} and ")
        line = f"{package['name']}=={package['version']}"
        line += f" ; {marker}" if marker != ALWAYS else ""
        hashes = sorted(f"    --hash=sha256:{value}" for value in _hashes(package))
        yield " \\\n".join((line, *hashes)) + "\n"


def _hashes(package: Mapping[str, Any]) -> Iterator[str]:
    files = [file for file in package.get("wheels", ()) if WHEEL.search(file["url"])]
    if "sdist" in package:
        files.append(package["sdist"])
    for file in files:
        yield file["hashes"]["sha256"]


def versions(text: str) -> set[str]:
    """Return name and version of each package in a lock file."""
    return set(re.findall(r"^[\w.-]+==[^\s;\\]+", text, re.MULTILINE))


def resolve(directory: Path, constraints: Path | None, requirements: Sequence[str]) -> Path:
    """Have uv choose versions; return the file, a pylock.toml, or a list without constraints."""
    import uv

    source = directory / "wanted.in"
    source.write_text("".join(f"{line}\n" for line in requirements))
    target = directory / ("pylock.toml" if constraints else "constraints.txt")
    target.unlink(missing_ok=True)
    command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--universal", "--python-version", OLDEST, "--output-file", str(target)]
    if constraints:
        command += ["--constraint", str(constraints)]
    subprocess.run([*command, str(source)], env=_environment(directory), check=True)
    return target


def _environment(directory: Path) -> dict[str, str]:
    """Return the environment for uv: without its settings, but with pip's index."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("UV_")}
    own |= {"UV_NO_CONFIG": "1", "UV_NO_CACHE": "1", "UV_PYTHON_DOWNLOADS": "never"}
    own["TMPDIR"] = str(directory)  # uv leaves files there
    pip = [sys.executable, "-I", "-m", "pip", "config", "get", "global.index-url"]
    asked = subprocess.run(pip, capture_output=True, text=True)
    if asked.returncode == 0:
        own["UV_DEFAULT_INDEX"] = asked.stdout.strip()
    return own


def main() -> int:
    """Write all lock files; print what changed."""
    import tomllib

    wanted = groups()
    LOCKS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        everything = [line for lines in wanted.values() for line in lines]
        constraints = resolve(directory, None, everything)
        for group, lines in wanted.items():
            lock = tomllib.loads(resolve(directory, constraints, lines).read_text())
            _replace(LOCKS / f"{group}.lock", HEAD + "".join(entries(lock)))
    return 0


def _replace(path: Path, text: str) -> None:
    """Write the file; print the versions that it loses and gains."""
    before = versions(path.read_text()) if path.exists() else set()
    after = versions(text)
    path.write_text(text)
    changes = [f"-{line}" for line in sorted(before - after)]
    changes += [f"+{line}" for line in sorted(after - before)]
    print(f"{path.name}: {' '.join(changes) or 'no other versions'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
