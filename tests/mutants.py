"""mutants - change the program at random places, and count the changes that the tests notice.

    scripts/tlsmgr-test --mutants [SECONDS [SEED]]

A sample of the core, another one each time. In a copy of the checkout one line is changed by an
operator of cosmic-ray, or a statement that is a call is left out, which cosmic-ray has no operator
for. Then the unit tests of that part run up to the first failure. A mutant is killed when they fail
or take three times as long as usual. A change of annotations or docstrings alone is no mutant.

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
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600.0
UNIT = "tests/unit"
CORE = {  # the core, and the tests that should see a change of it
    "sessions/*.py": (f"{UNIT}/sessions",),
    "prng/*.py": (f"{UNIT}/prng",),
    "wire/*.py": (f"{UNIT}/wire",),
    "processes/*.py": (f"{UNIT}/processes", "tests/daemon/test_parent.py"),
    "service.py": (f"{UNIT}/test_service.py",),
    "tickets.py": (f"{UNIT}/test_tickets.py",),
    "shm.py": (f"{UNIT}/test_shm.py", f"{UNIT}/test_shm_lock.py"),
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
    """Yield mutants without end: each line of the core is as likely as another."""
    weights = [len(path.read_text().splitlines()) for path in files]
    while True:
        (path,) = choice.choices(files, weights)
        if not (places := _places(path)):
            continue
        line = choice.choice(sorted(places))
        operator, number = choice.choice(places[line])
        text = path.read_text()
        mutated = mutate_code(text, operator, number) if operator else _without(text, line, number)
        with contextlib.suppress(SyntaxError):
            if mutated and _meaning(mutated) != _meaning(text):
                yield Mutant(path, line, mutated)


def passes(copy: Path, tests: tuple[str, ...], seconds: float) -> bool:
    """Run the tests in the copy; return whether they pass within the seconds."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    with subprocess.Popen(
        command,
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
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
    tests = {p: t for pattern, t in CORE.items() for p in (ROOT / "tlsmgr").glob(pattern)}
    usual, killed, survivors = dict[tuple[str, ...], float](), 0, list[Mutant]()
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy"
        for name in ("tlsmgr", "tests", "scripts", "setup.cfg"):
            source = ROOT / name
            shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy)
        for mutant in sample(sorted(tests), random.Random(seed)):
            if time.monotonic() > end:
                break
            chosen, began = tests[mutant.path], time.monotonic()
            if chosen not in usual:
                if not passes(copy, chosen, seconds):
                    print(f"mutants: {' '.join(chosen)} fail without a change", file=sys.stderr)
                    return 1
                usual[chosen] = time.monotonic() - began
            place = copy / mutant.path.relative_to(ROOT)
            place.write_text(mutant.text)
            if passes(copy, chosen, 10 + 3 * usual[chosen]):
                survivors.append(mutant)
                print(diff(mutant), flush=True)
            else:
                killed += 1
            place.write_text(mutant.path.read_text())
    share = 100 * killed // max(1, killed + len(survivors))
    print(f"mutants: {killed} killed, {len(survivors)} survived ({share} % killed); seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:]))))
