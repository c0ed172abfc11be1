"""scripts/venv.sh: which Python the virtual environment is made with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "venv.sh"
COMPLETE = "#!/bin/sh\nexit 0\n"
TOO_OLD = "#!/bin/sh\nexit 1\n"
WITHOUT_ENSUREPIP = '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\n'


def choose(directory: Path, **environment: str) -> str:
    """What it chooses, or its last words, when the system's Python is ``system`` of a directory."""
    copy = directory / "venv.sh"
    copy.write_text(SCRIPT.read_text().replace("/usr/bin/python3", str(directory / "system")))
    done = subprocess.run(
        ["/bin/sh", "-c", f'. "{copy}"; find_base; echo "$base"'],
        env={"PATH": f"{directory}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout if done.returncode == 0 else done.stderr).strip()


@pytest.mark.parametrize(
    ("system", "in_path", "chosen"),
    [
        (COMPLETE, COMPLETE, "system"),
        (None, COMPLETE, "python3"),
        (TOO_OLD, COMPLETE, "python3"),
        (WITHOUT_ENSUREPIP, COMPLETE, "python3"),
        (WITHOUT_ENSUREPIP, WITHOUT_ENSUREPIP, "system"),
        (WITHOUT_ENSUREPIP, TOO_OLD, "system"),
    ],
)
def test_the_choice(tmp_path: Path, system: str | None, in_path: str, chosen: str) -> None:
    for name, text in (("system", system), ("python3", in_path)):
        if text is not None:
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
    assert choose(tmp_path).rpartition("/")[2] == chosen


def test_the_user_knows_better(tmp_path: Path) -> None:
    mine = tmp_path / "my python"
    mine.write_text(COMPLETE)
    mine.chmod(0o755)
    assert choose(tmp_path, PYTHON=str(mine)) == str(mine)


def test_no_python_that_will_do(tmp_path: Path) -> None:
    said = choose(tmp_path, PYTHON=str(tmp_path / "nothing"))
    assert said.endswith("fatal: Python 3.10 or later is needed; PYTHON=/path/to/python3 names one")
