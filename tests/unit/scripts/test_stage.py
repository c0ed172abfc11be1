"""scripts/package/stage.py: what a package installs, without the wheels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

TIME = 1_700_000_000
NUMBER = f"{sys.version_info[0]}.{sys.version_info[1]}"


def stage(wheels: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-I",
            CHECKOUT / "scripts/package/stage.py",
            wheels,
            directory,
            "repair it",
        ],
        env={"SOURCE_DATE_EPOCH": str(TIME)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a package installs, without any wheel."""
    top = tmp_path_factory.mktemp("stage")
    done = stage(top, top / "tree")
    assert done.returncode == 0, done.stderr
    return top / "tree"


def test_the_pages_call_the_commands_as_they_are_installed(tree: Path) -> None:
    pages = "".join(path.read_text() for path in (tree / "usr/share/man").rglob("*.*"))
    assert "scripts/tlsmgr" not in pages
    assert "\n# tlsmgr-postfix enable\n" in pages
    assert "root /usr/bin/tlsmgrctl farm advance" in pages


def test_the_commands_are_links_into_the_package(tree: Path) -> None:
    for path in ("usr/sbin/tlsmgr-postfix", "usr/sbin/tlsmgr-start", "usr/bin/tlsmgrctl"):
        assert (tree / path).resolve() == tree / "usr/lib/tlsmgr/scripts" / Path(path).name
        assert (tree / path).stat().st_mode & 0o777 == 0o755


def test_it_has_the_shape_of_a_checkout_that_is_ready(tree: Path) -> None:
    home = tree / "usr/lib/tlsmgr"
    assert os.readlink(home / ".venv/bin/python") == f"/usr/bin/python{NUMBER}"
    assert (home / ".venv/installed").read_text() == f"/usr/lib/tlsmgr\n/usr/bin/python{NUMBER}\n"
    assert (home / "packaged").read_text() == "repair it\n"
    modules = {path.relative_to(home) for path in (home / "tlsmgr").rglob("*")}
    ours = {path.relative_to(CHECKOUT) for path in (CHECKOUT / "tlsmgr").rglob("*")}
    assert modules == {path for path in ours if "__pycache__" not in path.parts}


def test_all_pages_and_units_are_there(tree: Path) -> None:
    pages = {path.name for path in (tree / "usr/share/man").rglob("*.*")}
    ours = {path.name for path in (CHECKOUT / "man").glob("*.[1-8]")}
    assert pages == ours - {"tlsmgr.8"} | {"tlsmgr-prefork.8"}
    units = {path.name for path in (tree / "usr/lib/systemd/system").iterdir()}
    assert {"tlsmgr.service", "tlsmgr.socket", "tlsmgr-metrics.service"} <= units
    assert "sysusers.conf" not in units


def test_the_example_has_each_parameter_as_a_comment(tree: Path) -> None:
    from tlsmgr.config.parameters import OURS

    lines = (tree / "usr/share/doc/tlsmgr/examples/tlsmgr.cf").read_text().splitlines()
    assert all(line.startswith("#") for line in lines if line)
    for row in OURS:
        assert f"# {row.name} = {row.default}" in lines


def test_nothing_depends_on_the_time_or_the_umask_of_the_build(tree: Path) -> None:
    for path in tree.rglob("*"):
        status = path.lstat()
        assert status.st_mtime == TIME
        assert path.is_symlink() or not status.st_mode & 0o022


def test_a_wheel_that_is_not_locked_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "thing-1-py3-none-any.whl", "w") as archive:
        archive.writestr("thing.py", "")
    done = stage(tmp_path, tmp_path / "tree")
    assert done.returncode == 1
    assert "thing-1-py3-none-any.whl is not a file of the lock file" in done.stderr


def test_the_licence_of_each_locked_package_is_told() -> None:
    told = (CHECKOUT / "scripts/package/deb/copyright").read_text()
    for group in ("run", "metrics"):
        lock = (CHECKOUT / f"scripts/locks/{group}.lock").read_text()
        for name in re.findall("^([\\w-]+)==", lock, re.MULTILINE):
            assert f"\nFiles: wheels/{name.replace('-', '_')}*\nCopyright: " in told


def test_the_page_of_the_daemon_has_a_name_that_postfix_does_not_use(tree: Path) -> None:
    """Debian 13 and Fedora have Postfix's page as man8/tlsmgr.8, and a file has one owner."""
    pages = tree / "usr/share/man"
    assert not list(pages.rglob("tlsmgr.8*"))
    text = (pages / "man8/tlsmgr-prefork.8").read_text()
    assert "\n.Dt TLSMGR-PREFORK 8\n" in text
    assert "\n.Nm tlsmgr ,\n.Nm tlsmgr-prefork\n.Nd " in text
    others = "".join(path.read_text() for path in pages.rglob("*.[1-8]"))
    assert "\n.Xr tlsmgr-prefork 8" in others
    assert set(re.findall(r"^(.*)\n\.Xr tlsmgr 8", others, re.MULTILINE)) == {
        "as with Postfix's own"
    }
