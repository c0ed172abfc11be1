"""The house rules that a machine can hold: floors, doors with one key, sizes, docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from support.checkout import CHECKOUT

ROOT = CHECKOUT / "tlsmgr"
FILES = sorted(path for path in ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# From the top down. A part that is not named here is a failure.
FLOORS = (
    {
        "bootstrap",
        "daemon",
        "standalone",
        "daemonize",
        "socketfile",
        "systemd",
        "pidfile",
        "reexec",
        "client",
        "ctl",
        "install",
    },
    {"processes"},
    {"service"},
    {"sessions", "tickets", "prng", "farm", "latency", "status_object", "config"},
    {"stats"},
    {"wire", "control_lines", "shm", "log", "logsockets"},
)
# Neighbours on one floor that may be used; everything else on a floor keeps to itself.
NEIGHBOURS = {
    ("bootstrap", "daemon"),
    ("install", "bootstrap"),
    ("install", "client"),
    ("standalone", "daemon"),
    ("standalone", "daemonize"),
    ("standalone", "socketfile"),
    ("standalone", "pidfile"),
    ("standalone", "reexec"),
    ("standalone", "systemd"),
    ("ctl", "client"),
    ("ctl", "install"),
    ("logsockets", "log"),
}

LONGEST_FILE, LONGEST_FUNCTION, LONGEST_DOCSTRING = 400, 60, 25  # lines

DOORS = {
    "pymemcache": {"farm/memcache_engine.py"},
    "redis": {"farm/redis_engine.py"},
    "lmdb": {"sessions/lmdb_file.py"},
    "posix_ipc": {"shm.py"},
}
KEYS = {
    ("fork", "forkpty", "wait", "waitpid", "wait3", "wait4", "waitid"): {
        "processes/children.py",
        "daemonize.py",
    },
    (
        "chroot", "setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid",
        "setresgid", "setgroups", "initgroups",
    ): {"processes/jail.py"},
}  # fmt: skip


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), name)


def part_of(module: str) -> str:
    """The part of the house: ``tlsmgr.sessions.store`` is of ``sessions``."""
    return module.split(".")[1] if "." in module else ""


def imports_of(name: str) -> Iterator[str]:
    """Every module that a file imports, wherever in the file that is."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            if node.module == "tlsmgr":
                yield from (f"tlsmgr.{alias.name}" for alias in node.names)
            else:
                yield node.module


def part_of_file(name: str) -> str:
    return name.removesuffix(".py").split("/")[0]


def floor_of(part: str) -> int:
    """0 is the top."""
    floors = [number for number, floor in enumerate(FLOORS) if part in floor]
    assert len(floors) == 1, f"{part} has no floor in the house"
    return floors[0]


def test_there_are_files() -> None:
    assert len(FILES) > 30
    assert set().union(*FLOORS) <= {part_of_file(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_down(name: str) -> None:
    here = part_of_file(name)
    used = {part_of(module) for module in imports_of(name) if module.startswith("tlsmgr.")}
    used -= {here, "__version__"}
    if here == "__init__":
        return
    for there in used:
        below = floor_of(there) > floor_of(here)
        assert below or (here, there) in NEIGHBOURS, f"{here} uses {there}"


@pytest.mark.parametrize("module", DOORS)
def test_a_door_has_one_key(module: str) -> None:
    users = {
        name for name in NAMES if any(used.split(".")[0] == module for used in imports_of(name))
    }
    assert users == DOORS[module]


@pytest.mark.parametrize("calls", KEYS, ids=lambda calls: calls[0])
def test_calls_that_one_place_may_make(calls: tuple[str, ...]) -> None:
    users = {
        name
        for name in NAMES
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.Attribute)
        and node.attr in calls
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert users == KEYS[calls]
    for name in NAMES:
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                assert not {alias.name for alias in node.names} & set(calls), name


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{name}: {node.name}"


@pytest.mark.parametrize("name", NAMES)
def test_docstrings(name: str) -> None:
    tree = tree_of(name)
    if not tree.body:
        return  # a file that only makes a package
    text = ast.get_docstring(tree)
    assert text, "every module has a docstring"
    assert len(text.splitlines()) <= LONGEST_DOCSTRING
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}: {node.name}"


def test_no_rooms_for_rubbish() -> None:
    for path in FILES:
        assert path.stem not in ("util", "utils", "helper", "helpers")
