"""scripts/venv.sh: which Python the virtual environment is made with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "venv.sh"
COMPLETE = "#!/bin/sh\nexit 0\n"
EMPTY = ""  # which a shell runs, with success
TOO_OLD = "#!/bin/sh\nexit 1\n"
WITHOUT_ENSUREPIP = '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\n'


def choose(directory: Path, **environment: str) -> str:
    """Return the choice, or the complaint, with ``system`` of a directory as system's Python."""
    copy = directory / "venv.sh"
    copy.write_text(SCRIPT.read_text().replace("/usr/bin/python3", str(directory / "system")))
    done = subprocess.run(
        ["/bin/sh", "-c", f'. "{copy}"; find_base "venv, ensurepip"; echo "$base"'],
        env={"PATH": f"{directory}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
    )
    return (done.stdout if done.returncode == 0 else done.stderr).strip()


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("system", "in_path", "chosen"),
    [
        (COMPLETE, COMPLETE, "system"),
        (None, COMPLETE, "python3"),
        (TOO_OLD, COMPLETE, "python3"),
        (EMPTY, COMPLETE, "python3"),
        (WITHOUT_ENSUREPIP, COMPLETE, "python3"),
        (WITHOUT_ENSUREPIP, WITHOUT_ENSUREPIP, "system"),
        (WITHOUT_ENSUREPIP, TOO_OLD, "system"),
    ],
)
def test_the_choice(tmp_path: Path, system: str | None, in_path: str, chosen: str) -> None:
    for name, text in (("system", system), ("python3", in_path)):
        if text is not None:
            write_program(tmp_path / name, text)
    assert choose(tmp_path) == str(tmp_path / chosen)


@pytest.mark.parametrize("written", ["{}/my python", "./my python"])
def test_the_user_knows_better(tmp_path: Path, written: str) -> None:
    write_program(tmp_path / "my python", COMPLETE)
    chosen = choose(tmp_path, PYTHON=written.format(tmp_path))
    assert Path(chosen).is_absolute()
    assert Path(chosen).samefile(tmp_path / "my python")


def test_no_python(tmp_path: Path) -> None:
    write_program(tmp_path / "python3", TOO_OLD)
    assert "fatal: needs Python 3.10 or later" in choose(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "old"])
def test_a_python_of_the_user_that_will_not_do(tmp_path: Path, name: str) -> None:
    write_program(tmp_path / "old", TOO_OLD)
    said = choose(tmp_path, PYTHON=str(tmp_path / name))
    assert said.endswith(f"fatal: PYTHON={tmp_path}/{name} is not a Python 3.10 or later")
