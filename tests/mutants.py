"""mutants - change the program at random places, and count the changes that the tests notice.

    scripts/tlsmgr-test --mutants [SECONDS [SEED]]

A sample of the core, another one each time. In a copy of the checkout one line is changed by an
operator of cosmic-ray, or a statement that is a call is left out, which cosmic-ray has no operator
for. Then the unit tests of that part run up to the first failure and, if there is none, those of a
daemon. A mutant is killed when they fail or take three times as long as usual. A change of
annotations or docstrings alone is no mutant.

It ends with the survivors, as a diff each, and their number. A survivor is a test to write, or a
change that makes no difference. The seed that it prints repeats a sample.
"""

from __future__ import annotations

import ast
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600.0
TRIES = 3  # of tests without a change, on a machine that may be busy
UNIT, DAEMON = "tests/unit", "tests/daemon/test_"
CORE = {  # the core, and the unit tests that should see a change of it
    "sessions/*.py": (f"{UNIT}/sessions",),
    "prng/*.py": (f"{UNIT}/prng",),
    "wire/*.py": (f"{UNIT}/wire",),
    "processes/*.py": (f"{UNIT}/processes",),
    "service.py": (f"{UNIT}/test_service.py",),
    "tickets.py": (
        f"{UNIT}/test_tickets.py",
        f"{UNIT}/test_tickets_restored.py",
        f"{UNIT}/farm/test_ticket_keys.py",
    ),
    "shm.py": (f"{UNIT}/test_shm.py", f"{UNIT}/test_shm_lock.py"),
}
ENDS = "drain", "reload", "reload_caches", "hangup", "parent_end", "master_end"
LIFE = "parent", "parent_end", "start", "locks", "load_deaths"
CLIENTS = "worker", "protocol", "protocol_end", "protocol_mistakes", "load_limits"
FILES = "janitor", "caches_heal", "full_disk", "jail", "jailed"
START = "start", "jail", "jailed", "once", "standalone", "own_parameters", "secrets_end"
BY_DAEMON = {  # and the tests of a daemon, for a change that no unit test sees
    "sessions": ("operate", "caches_heal", "single_use", "full_disk"),
    "prng": ("start", "once", "janitor"),
    "wire": ("protocol", "protocol_mistakes", "recorded"),
    "service.py": ("protocol", "protocol_mistakes", "recorded", "operate"),
    "tickets.py": ("operate", "reload", "locks"),
    "shm.py": ("locks", "start", "secrets_end"),
    "processes/control": ("control", "control_commands", "control_hostile", "control_jail"),
    "processes/farm": ("farm_store", "farm_burst", "farm", "farm_jail", "memcache_table"),
    "processes/janitor": FILES,
    "processes/file": FILES,
    "processes/worker": (*CLIENTS, *ENDS, "caches_heal", "operate", "farm_store"),
    "processes/replies": (*CLIENTS, "operate"),
    "processes/connections": CLIENTS,
    "processes/listeners": (*CLIENTS, "load"),
    "processes/master": ("master", "master_end", "master_options"),
    "processes/once": ("once",),
    "processes/setup": (*START, "farm_store"),
    "processes/jail": START,
    "processes/inherited": (*START, *LIFE, "farm_store"),
    "processes/trial": ("hangup", "hangup_refused"),
    "processes/program": ("hangup", "hangup_refused"),
    **{
        f"processes/{name}": ENDS
        for name in ("departure", "drain", "bridge", "succession", "parking", "handover", "ending")
    },
    "processes": (*LIFE, "control"),
}


class Mutant(NamedTuple):
    """A file with one change; ``line`` is where."""

    path: Path
    line: int
    text: str


class _Lines(Visitor):  # type: ignore[misc]
    """Collects the line of each place that an operator can change."""

    def __init__(self, operator: object) -> None:
        self.operator, self.lines = operator, list[int]()

    def visit(self, node: object) -> object:
        positions = self.operator.mutation_positions(node)  # type: ignore[attr-defined]
        self.lines += [start[0] for start, _ in positions]
        return node


@cache
def _places(path: Path) -> dict[int, list[tuple[object, int]]]:
    """Return, by line, operators and the number of the place; None for a call to leave out."""
    tree, found = get_ast(path.read_text()), dict[int, list[tuple[object, int]]]()
    for name in operator_names():
        kind = get_operator(name)
        if not kind.arguments():
            lines = _Lines(operator := kind())
            lines.walk(tree)
            for number, line in enumerate(lines.lines):
                found.setdefault(line, []).append((operator, number))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.setdefault(node.lineno, []).extend([(None, node.end_lineno or 0)] * 9)
    return found


def _meaning(text: str) -> str:
    """Return the program without annotations and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if hasattr(node, name):
                setattr(node, name, None)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return ast.dump(tree)


def _without(text: str, first: int, last: int) -> str:
    lines = text.splitlines(keepends=True)
    indent = lines[first - 1][: -len(lines[first - 1].lstrip())]
    return "".join([*lines[: first - 1], f"{indent}pass\n", *lines[last:]])


def sample(files: list[Path], choice: random.Random) -> Iterator[Mutant]:
    """Yield mutants without end, none twice: each line of the core is as likely as another."""
    weights = [len(path.read_text().splitlines()) for path in files]
    seen = set[str]()
    while True:
        (path,) = choice.choices(files, weights)
        if not (places := _places(path)):
            continue
        line = choice.choice(sorted(places))
        operator, number = choice.choice(places[line])
        text = path.read_text()
        mutated = mutate_code(text, operator, number) if operator else _without(text, line, number)
        with contextlib.suppress(SyntaxError):
            if mutated and mutated not in seen and _meaning(mutated) != _meaning(text):
                seen.add(mutated)
                yield Mutant(path, line, mutated)


def make_copy(directory: Path) -> tuple[Path, Path]:
    """Return a copy of the checkout, and a Python that finds it, in isolated mode (-I) as well."""
    copy, environment = directory / "copy", directory / "venv"
    for name in ("tlsmgr", "tests", "scripts", "setup.cfg"):
        source = ROOT / name
        shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy)
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    ours = sysconfig.get_path("purelib")
    start = f"import site, sys; sys.dont_write_bytecode = True; site.addsitedir({ours!r})"
    (packages / "copy.pth").write_text(f"{copy}\n{start}\n")
    directory.chmod(0o755)  # mail_owner runs it too
    return copy, environment / "bin/python"


def passes(copy: Path, python: Path, tests: tuple[str, ...], seconds: float) -> bool:
    """Run the tests in the copy; return whether they pass within the seconds."""
    command = [str(python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    with subprocess.Popen(
        command,
        cwd=copy,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Unsound(Exception):
    """Tests fail without a change; the text says which."""


class Tests:
    """The tests in the copy, and how long they take without a change, once that is needed."""

    def __init__(self, copy: Path, python: Path, patience: float) -> None:
        self._copy, self._python, self._patience = copy, python, patience
        self._usual = dict[tuple[str, ...], float]()

    def notice(self, mutant: Mutant) -> bool:
        """Return whether a step fails or takes three times as long as usual. Raises Unsound."""
        place = self._copy / mutant.path.relative_to(ROOT)
        for step in tests_of(mutant.path):
            limit = 10 + 3 * self._time_of(step)
            place.write_text(mutant.text)
            passed = passes(self._copy, self._python, step, limit)
            place.write_text(mutant.path.read_text())
            if not passed:
                return True
        return False

    def _time_of(self, step: tuple[str, ...]) -> float:
        if step in self._usual:
            return self._usual[step]
        for _ in range(TRIES):
            began = time.monotonic()
            if passes(self._copy, self._python, step, self._patience):
                return self._usual.setdefault(step, time.monotonic() - began)
        raise Unsound(f"{' '.join(step)} fail without a change")


def tests_of(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the unit tests of a file, and the tests of a daemon that it has a part in."""
    name = str(path.relative_to(ROOT / "tlsmgr"))
    unit = next(tests for pattern, tests in CORE.items() if Path(name).match(pattern))
    daemon = next(tests for start, tests in BY_DAEMON.items() if name.startswith(start))
    return unit, tuple(f"{DAEMON}{test}.py" for test in daemon)


def diff(mutant: Mutant) -> str:
    """Return the changed lines."""
    run = subprocess.run(
        ["diff", "-U0", str(mutant.path), "-"], input=mutant.text, capture_output=True, text=True
    )
    lines = [line for line in run.stdout.splitlines()[3:] if line.strip("+-")]
    return "\n".join([f"{mutant.path.relative_to(ROOT)}:{mutant.line}", *lines])


def main(seconds: float = SECONDS, seed: int | None = None) -> int:
    """Return the exit status: 1 when the tests fail without a change."""
    end = time.monotonic() + seconds
    seed = random.randrange(1 << 32) if seed is None else seed
    files = sorted(p for pattern in CORE for p in (ROOT / "tlsmgr").glob(pattern))
    killed, survived = 0, 0
    with tempfile.TemporaryDirectory() as directory:
        tests = Tests(*make_copy(Path(directory)), patience=seconds)
        for mutant in sample(files, random.Random(seed)):
            if time.monotonic() > end:
                break
            try:
                is_killed = tests.notice(mutant)
            except Unsound as failure:
                print(f"mutants: {failure}", file=sys.stderr)
                return 1
            killed += is_killed
            if not is_killed:
                survived += 1
                print(diff(mutant), flush=True)
    share = 100 * killed // max(1, killed + survived)
    print(f"mutants: {killed} killed, {survived} survived ({share} % killed); seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:]))))
