"""scripts/venv.sh: the virtual environment is made, repaired, and never by foreign code."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.small_checkout import SmallCheckout

USE = "use_venv ''"
READY = f"PATH=/nonexistent; {USE}"  # when it is ready, no program is run

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user: needs root")


@pytest.fixture(scope="module")
def settled(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallCheckout:
    """One that works, for tests that damage it and see it repaired."""
    checkout = SmallCheckout(tmp_path_factory.mktemp("settled") / "own", quick)
    assert checkout.call(USE)[0] == 0
    return checkout


@pytest.fixture
def copy(made: SmallCheckout, quick: Path, tmp_path: Path) -> SmallCheckout:
    """A copy of the one that was made, at another place."""
    checkout = SmallCheckout(tmp_path / "copy", quick)
    shutil.copytree(made.root / ".venv", checkout.root / ".venv", symlinks=True)
    return checkout


def test_when_it_is_ready_nothing_is_said_or_started(made: SmallCheckout) -> None:
    assert made.call(READY) == (0, [])
    assert not (made.root / ".venv/pip.log").exists()
    assert sorted(path.name for path in made.root.iterdir() if path.name.startswith(".")) == [
        ".venv"
    ]


def test_a_changed_setup_cfg_is_looked_at_again(made: SmallCheckout) -> None:
    os.utime(made.settings)
    status, said = made.call(USE)
    assert status == 0, said
    assert "repairs or updates" in said[0]
    assert made.call(READY) == (0, [])


def no_pip(checkout: SmallCheckout) -> None:
    for path in checkout.packages.glob("pip*"):
        shutil.rmtree(path)


def dangling_interpreter(checkout: SmallCheckout) -> None:
    for path in (checkout.root / ".venv/bin").glob("python*"):
        path.unlink()
        path.symlink_to("/nonexistent/python3")


def empty_interpreter(checkout: SmallCheckout) -> None:
    checkout.python.unlink()
    checkout.python.touch(0o755)


def packages_of_another_python(checkout: SmallCheckout) -> None:
    checkout.packages.parent.rename(checkout.root / ".venv/lib/python3.1")


def no_directory(checkout: SmallCheckout) -> None:
    shutil.rmtree(checkout.root / ".venv")
    (checkout.root / ".venv").write_text("")


def package_gone(checkout: SmallCheckout) -> None:
    (checkout.packages / "thing.py").unlink()


def package_broken(checkout: SmallCheckout) -> None:
    (checkout.packages / "thing.py").write_text("1 +\n")


def part_gone(checkout: SmallCheckout) -> None:
    (checkout.packages / "thing_later.py").unlink()


def no_path_file(checkout: SmallCheckout) -> None:
    (checkout.packages / "tlsmgr.pth").unlink()


def empty_stamp(checkout: SmallCheckout) -> None:
    (checkout.root / ".venv/installed").write_text("")


@pytest.mark.parametrize(
    "damage",
    [
        no_pip,
        dangling_interpreter,
        empty_interpreter,
        packages_of_another_python,
        no_directory,
        no_path_file,
        empty_stamp,
    ],
)
def test_whatever_state_it_is_in_the_next_call_repairs_it(
    copy: SmallCheckout, damage: Callable[[SmallCheckout], None]
) -> None:
    damage(copy)
    assert not copy.works()
    status, said = copy.call(USE)
    assert status == 0, said
    assert copy.works()
    assert copy.call(READY) == (0, [])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (package_gone, "cannot import thing: "),
        (package_broken, "cannot import thing: "),
        (part_gone, "package thing lacks thing_later.py)"),
    ],
)
def test_a_package_that_breaks_in_place_is_noticed(
    settled: SmallCheckout, damage: Callable[[SmallCheckout], None], reason: str
) -> None:
    damage(settled)
    status, said = settled.call("check_venv ''")
    assert status == 0, said
    assert f"({reason}" in said[0]
    assert settled.works()
    assert (settled.packages / "thing_later.py").exists()
    assert settled.call("check_venv ''") == (0, [])


def test_a_package_is_never_repaired_in_place(settled: SmallCheckout) -> None:
    packaged = settled.root / "packaged"
    packaged.write_text("install it again\n")
    assert settled.call("check_venv ''") == (0, [])
    package_gone(settled)
    status, said = settled.call("check_venv ''")
    assert status == 1
    (line,) = said
    assert line.startswith(f"tlsmgr-start: fatal: {settled.root} is damaged (cannot import thing: ")
    assert line.endswith("; to repair it: install it again")
    assert not (settled.packages / "thing.py").exists()
    status, (line,) = settled.call("use_venv '[more]'")
    assert status == 1
    assert line.endswith("the package does not have what this needs; a checkout fetches it")
    packaged.unlink()
    assert settled.call("check_venv ''")[0] == 0
    assert settled.works()


def test_a_program_that_cannot_be_imported_has_it_repaired(settled: SmallCheckout) -> None:
    """Here a package is missing that setup.cfg does not name, so the repair does not help."""
    package_gone(settled)
    code = "self=$root/scripts/tlsmgr-start; run -o x=y"
    status, said = settled.call(code)
    assert status == 1
    assert "repairs or updates" in said[0]
    assert "(ModuleNotFoundError: No module named " in said[0]
    assert said[-1].startswith("ModuleNotFoundError: No module named ")
    assert settled.works()


def test_nothing_of_the_callers_is_executed(tmp_path: Path) -> None:
    """Not from the current directory, and not by way of the environment."""
    checkout, foreign = SmallCheckout(tmp_path / "own"), tmp_path / "foreign"
    foreign.mkdir()
    mark = tmp_path / "executed"
    for name in ("ensurepip", "venv", "pip", "site", "sitecustomize", "thing", "configparser"):
        (foreign / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    (foreign / "pip.conf").write_text(f"[global]\nlog = {mark}\nno-binary = :all:\n")
    environment = {
        "PYTHONPATH": str(foreign),
        "PYTHONSTARTUP": str(foreign / "pip.py"),
        "PIP_CONFIG_FILE": str(foreign / "pip.conf"),
        "PIP_LOG": str(mark),
        "XDG_CONFIG_DIRS": str(foreign),
        "HOME": str(foreign),
        "TMPDIR": str(foreign),
    }
    (foreign / "pip").mkdir()
    (foreign / "pip" / "pip.conf").write_text(f"[global]\nlog = {mark}\n")
    before = sorted(foreign.rglob("*"))
    status, said = checkout.call(USE, environment, directory=foreign)
    assert status == 0, said
    assert checkout.works()
    assert not mark.exists(), mark.read_text()
    assert sorted(foreign.rglob("*")) == before


def test_two_first_starts_at_once(quick: Path, tmp_path: Path) -> None:
    checkout = SmallCheckout(tmp_path / "own", quick)
    starts = [checkout.start(USE) for _ in range(2)]
    said = "".join(start.communicate(timeout=300)[1] for start in starts)
    assert [start.returncode for start in starts] == [0, 0], said
    assert said.count("makes a virtual environment") == 1
    assert said.count("waits for another one") <= 1
    assert checkout.works()


@needs_root
@pytest.mark.parametrize("exists", [False, True])
def test_one_who_may_not_write_is_told_who_may(copy: SmallCheckout, exists: bool) -> None:
    if not exists:
        shutil.rmtree(copy.root / ".venv")
    for path in (*copy.root.parents, copy.root):
        if path.stat().st_mode & 0o7 == 0:
            path.chmod(path.stat().st_mode | 0o55)
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    status, said = copy.call(USE, prefix=become)
    assert status == 1
    where = f"{copy.root}/.venv" if exists else str(copy.root)
    assert f"fatal: cannot write to {where}: run this once as root, whose it is" in said[-1]


def test_without_a_network(copy: SmallCheckout) -> None:
    copy.lock(f"thing-that-lies-nowhere==1 --hash=sha256:{'0' * 64}")
    nowhere = "http://127.0.0.1:1"
    status, said = copy.call(USE, {"https_proxy": nowhere, "http_proxy": nowhere})
    assert status == 1
    assert "fatal: cannot reach the Python Package Index: is there a network?" in said[-1]
    assert len(said) == 3
    assert Path(said[-1].rpartition(" ")[2]).exists()


def test_a_changed_lock_file_is_looked_at_again(copy: SmallCheckout) -> None:
    assert copy.call(USE)[0] == 0
    os.utime(copy.locks / "run.lock")
    assert "repairs or updates" in copy.call(USE)[1][0]
    assert copy.call(READY) == (0, [])


def test_a_file_that_is_not_the_locked_one_is_not_installed(quick: Path, tmp_path: Path) -> None:
    checkout = SmallCheckout(tmp_path / "own", quick)
    (wheel,) = checkout.root.glob("*.whl")
    checkout.require(wheel, "0" * 64)
    status, said = checkout.call(USE)
    assert status == 1
    assert f"gave a file that is not the one in {checkout.locks}; nothing of it" in said[-1]
    assert not checkout.works()


def source_package(checkout: SmallCheckout, backend: str) -> None:
    """Have it require the package ``other``, of which there is only the source."""
    source, name = checkout.root / "other-1", checkout.root / "other-1.tar.gz"
    source.mkdir()
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (source / "backend.py").write_text(backend)
    with tarfile.open(name, "w:gz") as archive:
        archive.add(source, "other-1")
    checkout.require(name)
    sha256 = hashlib.sha256(name.read_bytes()).hexdigest()
    where = f"--no-index\n--find-links {checkout.root.as_uri()}"
    checkout.lock(f"{where}\nother==1 --hash=sha256:{sha256}")


NO_COMPILER = (
    "def build_wheel(*_):\n    raise SystemExit(\"error: command 'gcc' failed: No such file\")\n"
)


def test_without_a_wheel_nothing_is_compiled_unless_wanted(copy: SmallCheckout) -> None:
    mark = copy.root / "executed"
    source_package(copy, f"open({str(mark)!r}, 'w')\n{NO_COMPILER}")
    status, said = copy.call(USE)
    assert status == 1
    assert "there is no ready-made file of other" in said[-1]
    assert "TLSMGR_BUILD=1 has it compiled" in said[-1]
    assert not mark.exists()
    copy.call(USE, {"TLSMGR_BUILD": "1"})
    assert mark.exists()


def test_without_a_compiler(copy: SmallCheckout) -> None:
    source_package(copy, NO_COMPILER)
    status, said = copy.call(USE, {"TLSMGR_BUILD": "1"})
    assert status == 1
    assert "fatal: a package has to be compiled for this Python" in said[-1]
    assert len(said) == 3


def test_without_the_venv_module(tmp_path: Path) -> None:
    checkout = SmallCheckout(tmp_path / "own")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\n')
    python.chmod(0o755)
    status, said = checkout.call(USE, {"PYTHON": str(python)})
    assert status == 1
    assert said[-1].endswith(
        f"fatal: {python} lacks its venv module (on Debian: apt-get install python3-venv)"
    )
    assert not (checkout.root / ".venv").exists()


def test_an_interrupt_leaves_nothing_outside_the_checkout(made: SmallCheckout) -> None:
    """The temporary files of ensurepip, which a control-C leaves behind, go below .venv."""
    checkout, used = SmallCheckout(made.root / "interrupted"), made.root / "used"
    python = made.root / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *"-m venv"*) echo "$TMPDIR" >"{used}"; kill -INT $$;; esac\n'
        f'exec {os.path.realpath(made.python)} "$@"\n'
    )
    python.chmod(0o755)
    assert checkout.call(USE, {"PYTHON": str(python)})[0] != 0
    assert used.read_text() == f"{checkout.root}/.venv/tmp\n"


def test_python_is_heeded_or_complained_about(made: SmallCheckout, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    real = os.path.realpath(made.python)
    same.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    other.write_text(
        f'#!/bin/sh\ncase "$*" in *environment.py*) echo /bin/sh;; *) exec {real} "$@";; esac\n'
    )
    for path in (same, other):
        path.chmod(0o755)
    for name in (real, str(same)):
        assert made.call(USE, {"PYTHON": name}) == (0, [])
    status, said = made.call(USE, {"PYTHON": str(other)})
    assert status == 1
    assert said == [
        f"tlsmgr-start: fatal: {made.root}/.venv is made with {real}, not with {other};"
        f" to change that: rm -r {made.root}/.venv"
    ]
