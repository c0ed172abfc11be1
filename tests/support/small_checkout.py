"""small_checkout - a checkout with our scripts that needs one small package, which lies beside it

So its environment is made without a network. The package ``thing`` is a wheel made here, and the
lock files name nothing else. The venv module takes three seconds, so tests that are not about it
have it copy an environment: `quick`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.checkout import CHECKOUT


class SmallCheckout:
    """The checkout. ``call`` runs shell code with venv.sh sourced, as a script of it would."""

    def __init__(self, root: Path, quick: Path | None = None) -> None:
        """With `quick`, a Python that `quick_python` made is the system's."""
        self.root = root
        self.python = root / ".venv/bin/python"
        shutil.copytree(CHECKOUT / "scripts", root / "scripts", symlinks=True)
        if quick:
            script = root / "scripts" / "venv.sh"
            script.write_text(script.read_text().replace("/usr/bin/python3", str(quick)))
        (root / "tlsmgr").symlink_to(CHECKOUT / "tlsmgr")
        wheel = root / "thing-1-py3-none-any.whl"
        # thing_later is what an import of thing does not need
        write_wheel(wheel, {"thing.py": "", "thing_later.py": ""})
        for lock in self.locks.iterdir():
            lock.write_text("")
        self.require(wheel)

    def require(self, file: Path, sha256: str = "") -> None:
        """Have setup.cfg and the lock file require this and nothing else."""
        name = file.name.partition("-")[0]
        sha256 = sha256 or hashlib.sha256(file.read_bytes()).hexdigest()
        self.lock(f"{name} @ {file.as_uri()} --hash=sha256:{sha256}")
        self.settings.write_text(
            f"[options]\ninstall_requires =\n    {name}\n[options.extras_require]\nmore =\n"
        )

    def lock(self, line: str) -> None:
        """Have the lock file consist of this line."""
        (self.locks / "run.lock").write_text(f"{line}\n")

    @property
    def locks(self) -> Path:
        """Where its lock files are."""
        return self.root / "scripts/locks"

    @property
    def settings(self) -> Path:
        """Its setup.cfg."""
        return self.root / "setup.cfg"

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        (path,) = self.root.glob(".venv/lib/*/site-packages")
        return path

    def start(
        self,
        code: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        directory: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start that shell code."""
        script = self.root / "scripts" / "tlsmgr-start"
        return subprocess.Popen(
            [*prefix, "/bin/sh", "-c", f'. "{script.parent}/venv.sh"; {code}', str(script)],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=directory or self.root,
        )

    def call(self, code: str, *arguments: object, **options: object) -> tuple[int, list[str]]:
        """Run that shell code to its end; return status and what it said on standard error."""
        process = self.start(code, *arguments, **options)  # type: ignore[arg-type]
        _, errors = process.communicate(timeout=300)
        return process.returncode, errors.splitlines()

    def works(self) -> bool:
        """Whether its environment has the package and finds the program of this checkout."""
        with contextlib.suppress(OSError):
            code = "import thing, tlsmgr; print(tlsmgr.__file__)"
            run = subprocess.run(
                [self.python, "-I", "-c", code], capture_output=True, text=True, check=False
            )
            return run.stdout == f"{self.root}/tlsmgr/__init__.py\n"
        return False


def write_wheel(path: Path, files: Mapping[str, str]) -> None:
    """Write a wheel that pip can install; its name is that of the path."""
    name, version, *_ = path.name.split("-")
    info = f"{name}-{version}.dist-info"
    tag = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")


def quick_python(directory: Path, made: SmallCheckout) -> Path:
    """Make an interpreter whose venv module copies the environment that was made there."""
    bare = SmallCheckout(directory / "bare")
    shutil.copytree(made.root / ".venv", bare.root / ".venv", symlinks=True)
    for path in (*bare.packages.glob("t*"), *bare.root.glob(".venv/installed*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    python = directory / "python"
    python.write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        f'case "$*" in *"-m venv "*) exec cp -a "{bare.root}/.venv/." "$last";; esac\n'
        f'exec {made.python.resolve()} "$@"\n'
    )
    python.chmod(0o755)
    return python
