"""drive - the load generators: compile them, start them, collect their counts.

The clients are generator.c, compiled when the tool runs; without a C compiler there is no
measurement. `with Generators(...)` connects all clients and ends every process at its end. The
load lasts from `go` to `result`; the caller may do other things to the server meanwhile. A
generator that fails is fatal, with its own message.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from tlsmgr.log import Fatal

SOURCES = Path(__file__).parent
NO_COMPILER = "a C compiler is needed: cc, or the one that CC names (on Debian: gcc, libc6-dev)"
PATIENCE = 60.0  # seconds beyond the load in which a generator must report
SECOND = 1e9  # in nanoseconds
GOLDEN = 0x9E3779B97F4A7C15  # spreads small numbers over 64 bits

Histogram = Counter[int]
"""The number of latencies in each bucket; `figures` says which latencies a bucket holds."""


def compiler() -> str | None:
    """Return the path of the C compiler, $CC or else cc; None if there is none."""
    return shutil.which(os.environ.get("CC") or "cc")


def build(name: str, directory: Path) -> Path:
    """Compile NAME.c into the directory, once, and return the program. Fatal if it fails."""
    program, cc = directory / name, compiler()
    if program.exists():
        return program
    if cc is None:
        raise Fatal(NO_COMPILER)
    command = [cc, "-O2", "-o", str(program), str(SOURCES / f"{name}.c")]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode != 0:
        said = run.stdout.strip().splitlines() or [f"exit status {run.returncode}"]
        raise Fatal(f"{cc} cannot compile {name}.c: {said[0]}")
    return program


class Tally(NamedTuple):
    """The counts of all generators of one load together. Times in nanoseconds."""

    requests: int
    elapsed: int  # of the slowest generator
    cpu: int  # of all generators
    busiest: float  # share of one CPU that the busiest generator used, 0 to 1
    wrong: int  # replies other than those due
    lost: int  # connections that the server closed
    refused: int  # times that connect(2) found the listen queue full
    waiting: int  # clients that at the end had waited for over a second
    longest: int  # longest time that a client had waited at the end
    first_wrong: bytes
    histogram: Histogram


@dataclass
class Generators:
    """Load generators for one plan and one server.

    The `connections` are divided among the `processes`. The load lasts `seconds`; a plan that is
    to be done once may end it earlier.
    """

    program: Path
    plan: Path
    server: str  # its name, for messages
    socket: str
    connections: int
    seconds: float
    processes: int = 1
    number: int = 1  # start of the random choice of keys

    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Generators:
        try:
            for share in _shares(self.connections, self.processes):
                self._started.append(self._start(share))
            for process in self._started:
                self._line(process, PATIENCE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        self._started.clear()

    def _start(self, connections: int) -> subprocess.Popen[bytes]:
        self.number += 1
        numbers = (connections, round(self.seconds * SECOND), self.number * GOLDEN % 2**64)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [str(self.program), str(self.plan), self.socket, *map(str, numbers)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )

    def go(self) -> None:
        """Start the load in all processes."""
        for process in self._started:
            _stream(process.stdin).write(b"!")
            _stream(process.stdin).flush()

    def result(self) -> Tally:
        """Wait for the end of the load; the clients stay connected until the `with` ends."""
        limit = time.monotonic() + self.seconds + PATIENCE
        lines = [self._line(p, max(0.0, limit - time.monotonic())) for p in self._started]
        return _add_up([json.loads(line) for line in lines])

    def _line(self, process: subprocess.Popen[bytes], patience: float) -> bytes:
        """Return the next line that the generator prints. Fatal if there is none in time."""
        output = _stream(process.stdout)
        ready, _, _ = select.select([output], [], [], patience)
        line = output.readline() if ready else b""
        if not line:
            process.kill()
            complaint = _stream(process.stderr).read().decode(errors="replace").strip()
            raise Fatal(f"{self.server}: {complaint or 'the load generator does not respond'}")
        return line


def _shares(total: int, processes: int) -> list[int]:
    """Divide the total into shares that differ by at most one; leave out empty ones."""
    each, more = divmod(total, processes)
    return [share for i in range(processes) if (share := each + (i < more))]


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _add_up(results: Sequence[dict[str, Any]]) -> Tally:
    def total(name: str) -> int:
        return sum(int(result[name]) for result in results)

    histogram: Histogram = Counter()
    for result in results:
        histogram.update({int(bucket): n for bucket, n in result["histogram"].items()})
    return Tally(
        requests=total("requests"),
        elapsed=max(int(result["elapsed"]) for result in results),
        cpu=total("cpu"),
        busiest=max(result["cpu"] / max(1, result["elapsed"]) for result in results),
        wrong=total("wrong"),
        lost=total("lost"),
        refused=total("refused"),
        waiting=total("waiting"),
        longest=max(int(result["longest"]) for result in results),
        first_wrong=bytes.fromhex(next((r["first_wrong"] for r in results if r["wrong"]), "")),
        histogram=histogram,
    )
