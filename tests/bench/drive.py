"""drive - load generators: start them, let them go all at once, collect what they counted.

`with` connects all clients and ends every process at its end, whatever happened. Between `go` and
`result` the load is on, and the caller may do other things to the server. A generator that can't
do its work is fatal, with its own words.
"""

from __future__ import annotations

import json
import select
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.histogram import Histogram, merge
from tlsmgr.log import Fatal

PATIENCE = 60.0  # seconds beyond the load in which a generator has to say something
SECOND = 1e9  # in nanoseconds
GOLDEN = 0x9E3779B97F4A7C15  # spreads small numbers over 64 bits


class Tally(NamedTuple):
    """What all generators of one load counted. Times in nanoseconds."""

    requests: int
    elapsed: int  # of the slowest generator
    cpu: int  # of all generators
    busiest: float  # share of one CPU that the busiest generator used, 0 to 1
    wrong: int  # replies other than due
    lost: int  # connections that the server closed
    refused: int  # times that connect(2) found the listen queue full
    waiting: int  # clients at the end that had waited for a reply for over a second
    longest: int  # how long a client had waited at the end
    first_wrong: bytes
    histogram: Histogram


@dataclass
class Generators:
    """Load generators for one plan and one server.

    `connections` are shared out to `processes`; the load lasts `seconds`, or is over when a plan
    that is to be done once is done.
    """

    command: Sequence[str]
    plan: Path
    server: str  # its name, for complaints
    socket: str
    connections: int
    seconds: float
    processes: int = 1
    number: int = 1  # for the random choice of keys

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
            [*self.command, str(self.plan), self.socket, *map(str, numbers)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )

    def go(self) -> None:
        """Let all of them start."""
        for process in self._started:
            _stream(process.stdin).write(b"!")
            _stream(process.stdin).flush()

    def result(self) -> Tally:
        """Wait for the end of the load; the clients stay connected until the `with` ends."""
        limit = time.monotonic() + self.seconds + PATIENCE
        lines = [self._line(p, max(0.0, limit - time.monotonic())) for p in self._started]
        return _add_up([json.loads(line) for line in lines])

    def _line(self, process: subprocess.Popen[bytes], patience: float) -> bytes:
        """The next line that the generator prints. Fatal: there is none, or not in time."""
        output = _stream(process.stdout)
        ready, _, _ = select.select([output], [], [], patience)
        line = output.readline() if ready else b""
        if not line:
            process.kill()
            complaint = _stream(process.stderr).read().decode(errors="replace").strip()
            raise Fatal(f"{self.server}: {complaint or 'the load generator fell silent'}")
        return line


def _shares(total: int, processes: int) -> list[int]:
    """The total in so many shares that differ by one at most, none of them empty."""
    each, more = divmod(total, processes)
    return [share for i in range(processes) if (share := each + (i < more))]


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _add_up(results: Sequence[dict[str, Any]]) -> Tally:
    def total(name: str) -> int:
        return sum(int(result[name]) for result in results)

    counts = (Counter({int(b): n for b, n in r["histogram"].items()}) for r in results)
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
        histogram=merge(counts),
    )
