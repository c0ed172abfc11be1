"""scripts/locks/: the files that pip may install, and how tlsmgr-lock writes them."""

from __future__ import annotations

import hashlib
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from support.checkout import CHECKOUT
from support.small_checkout import SmallCheckout, write_wheel

LOCK = runpy.run_path(str(CHECKOUT / "scripts/package/lock.py"))
GROUPS = LOCK["groups"]()
entries: Callable[[dict[str, Any]], list[str]] = LOCK["entries"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
WITHOUT_WHEEL = {("posix-ipc", "3.14")}

# A stand-in for the package uv: it chooses version 1 of whatever is wanted.
STAND_IN = """\
import os

def find_uv_bin():
    tool = os.path.join(os.path.dirname(__file__), "tool.sh")
    os.chmod(tool, 0o755)
    return tool
"""
CHOOSE_VERSION_1 = """\
#!/bin/sh
while [ $# -gt 1 ]; do
    [ "$1" != --output-file ] || target=$2
    shift
done
sed 's/.*/[[packages]]\\nname = "&"\\nversion = "1"/' "$1" >"$target"
"""


def text(group: str) -> str:
    return (CHECKOUT / f"scripts/locks/{group}.lock").read_text()


def locked(group: str, python: str) -> dict[str, str]:
    """The versions for that Python, by name."""
    found = {}
    for line in re.findall(r"^[\w.-]+==[^\\]+", text(group), re.MULTILINE):
        name, _, rest = line.partition("==")
        version, _, marker = rest.partition(";")
        environment = {"python_full_version": f"{python}.0", "python_version": python}
        if not marker or Marker(marker).evaluate(environment):
            assert name not in found
            found[name] = version.strip()
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("group", GROUPS)
def test_each_requirement_of_setup_cfg_is_locked(group: str, python: str) -> None:
    versions = locked(group, python)
    for line in GROUPS[group]:
        requirement = Requirement(line)
        name = requirement.name.replace("_", "-")
        assert requirement.specifier.contains(versions[name])


def test_all_lock_files_agree_on_a_version() -> None:
    for python in PYTHONS:
        versions: dict[str, str] = {}
        for group in GROUPS:
            for name, version in locked(group, python).items():
                assert versions.setdefault(name, version) == version


@pytest.mark.parametrize("group", GROUPS)
def test_a_lock_file_has_hashes_and_no_place(group: str) -> None:
    lines = [line for line in text(group).splitlines() if not line.startswith("#")]
    packages = [line for line in lines if "==" in line]
    hashes = [line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)]
    assert len(packages) + len(hashes) == len([line for line in lines if line])
    assert "://" not in text(group)


def test_only_files_of_supported_systems_are_noted() -> None:
    names = {
        "a": "thing-1-cp310-cp310-manylinux_2_17_x86_64.whl",
        "b": "thing-1-cp36-abi3-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        "c": "thing-1-py3-none-any.whl",
        "-1": "thing-1-cp39-cp39-manylinux_2_17_x86_64.whl",
        "-2": "thing-1-cp313-cp313t-manylinux_2_17_x86_64.whl",
        "-3": "thing-1-cp311-cp311-win_amd64.whl",
        "-4": "thing-1-cp311-cp311-manylinux_2_17_ppc64le.whl",
    }
    wheels = [{"url": f"https://x/{name}", "hashes": {"sha256": h}} for h, name in names.items()]
    package = {
        "name": "thing",
        "version": "1",
        "marker": "python_full_version >= '3.10' and sys_platform == 'linux'",
        "wheels": wheels,
        "sdist": {"url": "https://x/thing-1.tar.gz", "hashes": {"sha256": "d"}},
    }
    (entry,) = entries({"packages": [package]})
    assert entry.split(" \\\n    ") == [
        "thing==1 ; sys_platform == 'linux'",
        *(f"--hash=sha256:{letter}" for letter in "abc"),
        "--hash=sha256:d\n",
    ]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tlsmgr-lock needs Python 3.11")
def test_tlsmgr_lock_can_start_before_a_new_requirement_is_locked(tmp_path: Path) -> None:
    checkout = SmallCheckout(tmp_path / "own")
    wheel = tmp_path / "uv-1-py3-none-any.whl"
    write_wheel(wheel, {"uv/__init__.py": STAND_IN, "uv/tool.sh": CHOOSE_VERSION_1})
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (checkout.locks / "lock.lock").write_text(f"uv @ {wheel.as_uri()} --hash=sha256:{sha256}\n")
    checkout.settings.write_text(
        "[options]\ninstall_requires =\n    thing\n    novelty\n"
        "[options.extras_require]\nlock =\n    uv\n"
    )
    done = subprocess.run(
        [checkout.root / "scripts/tlsmgr-lock"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "run.lock: +novelty==1 +thing==1"
    assert "\nnovelty==1\n" in (checkout.locks / "run.lock").read_text()


@pytest.mark.long
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_there_is_a_wheel_for_each_system(tmp_path: Path, python: str, machine: str) -> None:
    """pip itself chooses among the locked files, as on that system."""
    command = [sys.executable, "-I", "-m", "pip", "--isolated", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(tmp_path)]
    command += ["--python-version", python, "--abi", f"cp{python.replace('.', '')}", "--abi"]
    command += ["abi3", "--abi", "none", "--implementation", "cp"]
    for platform in ("manylinux2014", "manylinux_2_17", "manylinux_2_28"):
        command += ["--platform", f"{platform}_{machine}"]
    wanted = tmp_path / "wanted"
    versions = locked("run", python)
    blocks = re.findall(r"^([\w.-]+)==(\S+)[^\\]*((?:\\\n +\S+ ?)+)", text("run"), re.MULTILINE)
    wanted.write_text(
        "".join(
            f"{name}=={version} {hashes}\n"
            for name, version, hashes in blocks
            if versions.get(name) == version and (name, python) not in WITHOUT_WHEEL
        )
    )
    subprocess.run([*command, "--requirement", str(wanted)], check=True)
    names = {path.name.partition("-")[0].replace("_", "-") for path in tmp_path.glob("*.whl")}
    assert names == {name for name in versions if (name, python) not in WITHOUT_WHEEL}
