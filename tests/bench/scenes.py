"""scenes - the seed load while something else goes on: its 99th percentile is compared.

Each round measures the quiet server, then the scene, with 64 clients. Workers are killed only in
servers that were started here; other servers are left out of that scene.

The sweep scene takes minutes. Sessions live 120 seconds, the shortest time that a tlsmgr accepts,
and it sweeps at its start and every 120 seconds from then on (Postfix tlsmgr.c). All sessions that
are stored in the first two minutes have expired at 240 seconds, and none that are stored later. One
server after the other is started for this, filled twice, and watched during its third sweep. A
server that cannot be filled in time is left out with a warning.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import psutil

from bench.figures import Figures, measure
from bench.runs import Bench
from bench.servers import Server, ServerSpec, started
from tlsmgr.log import Fatal, warning

CLIENTS = 64
STALLED = 100
UPDATERS = 8
FIRST_KILL, KILL_INTERVAL = 0.5, 1.0  # seconds
HALVES = (b"r", b"request\0se", b"request\0update\0cache_type\0smtp\0cache_id\0x\0session\0QUJD")


class SceneRow(NamedTuple):
    """A scene on a server: figures of the seed load without and with it, round by round."""

    scene: str
    server: str
    quiet: list[Figures]
    disturbed: list[Figures]


@contextlib.contextmanager
def stalled(bench: Bench, server: Server) -> Iterator[None]:
    """Keep clients connected that have sent a part of a request."""
    with contextlib.ExitStack() as stack:
        for i in range(STALLED):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(1.0)
            with contextlib.suppress(OSError):  # stock accepts only the first few
                client.connect(server.socket)
                client.send(HALVES[i % len(HALVES)])
        yield


@contextlib.contextmanager
def updating(bench: Bench, server: Server) -> Iterator[None]:
    """Run more clients, which only update."""
    with bench.generators(server, "update", UPDATERS, seconds=bench.seconds + 1) as generators:
        generators.go()
        yield


@contextlib.contextmanager
def killing(bench: Bench, server: Server) -> Iterator[None]:
    """Kill a worker every second."""
    end = threading.Event()
    killer = threading.Thread(target=_kill_workers, args=(server, end))
    killer.start()
    try:
        yield
    finally:
        end.set()
        killer.join()


def _kill_workers(server: Server, end: threading.Event) -> None:
    pause = FIRST_KILL
    while not end.wait(pause):
        with contextlib.suppress(psutil.NoSuchProcess):
            if workers := server.workers():
                workers[0].kill()  # the oldest
        pause = KILL_INTERVAL


class Scene(NamedTuple):
    """The disturbance during the seed load."""

    meanwhile: Callable[[Bench, Server], contextlib.AbstractContextManager[None]]
    least: float  # seconds that it must last
    purpose: str


SCENES: Mapping[str, Scene] = {
    "stall": Scene(stalled, 1.2, f"{STALLED} clients stop in the middle of a request"),
    "updates": Scene(updating, 0.0, f"{UPDATERS} more clients send nothing but updates"),
    "kill": Scene(killing, FIRST_KILL + 0.4, "a worker is killed every second"),
}
SWEEP = {"sweep": "200,000 sessions are swept, half expire; takes 5 minutes"}


def scene_rows(servers: Sequence[Server], scenes: Sequence[str]) -> list[SceneRow]:
    """Return a row for each measurement, without figures."""
    return [
        SceneRow(scene, server.name, [], [])
        for scene in scenes
        for server in servers
        if scene != "kill" or server.workers()
    ]


def run_scenes(bench: Bench, servers: Sequence[Server], rows: Sequence[SceneRow]) -> None:
    """Run all rows, round by round."""
    by_name = {server.name: server for server in servers}
    for _ in range(bench.rounds):
        for row in rows:
            bench.tick(f"{row.scene} {row.server}")
            server, scene = by_name[row.server], SCENES[row.scene]
            row.quiet.append(bench.run(server, "seed", CLIENTS))
            seconds = max(bench.seconds, scene.least)
            generators = bench.generators(server, "seed", CLIENTS, seconds=seconds)
            row.disturbed.append(measure(generators, server, scene.meanwhile(bench, server)))


# The sweep.

HALF = 100_000
LIFE = 120.0  # seconds
MARGIN = 3.0  # seconds: clocks of whole seconds, and the time that a start takes
LENGTH = 8.0  # seconds to watch; the sweep takes longer
SWEEP_PARAMETERS = {"smtp_tls_session_cache_timeout": f"{LIFE:.0f}s"}
OUR_SWEEP_OPTIONS = ("smtp_tls_session_cache_size_limit=2147483648",)


def run_sweep(bench: Bench, names: Sequence[str], spec: ServerSpec) -> Iterator[SceneRow]:
    """Run the sweep scene on each of these servers."""
    options = (*OUR_SWEEP_OPTIONS, *spec.options)
    spec = replace(spec, parameters=SWEEP_PARAMETERS, options=options)
    for name in names:
        with started([name], spec) as [server]:
            try:
                yield _watch_sweep(bench, server, time.monotonic())
            except Fatal as error:
                warning(f"no sweep scene: {error.text}")


def _watch_sweep(bench: Bench, server: Server, start: float) -> SceneRow:
    bench.tick(f"sweep {server.name}, 4 minutes")
    bench.fill(server, range(HALF), LIFE - 2 * MARGIN)
    _sleep_until(start + LIFE + MARGIN)
    bench.fill(server, range(HALF, 2 * HALF), LIFE - 3 * MARGIN - bench.seconds)
    quiet = measure(bench.generators(server, "seed", CLIENTS), server)
    _sleep_until(start + 2 * LIFE)
    watched = measure(bench.generators(server, "seed", CLIENTS, seconds=LENGTH), server)
    return SceneRow("sweep", server.name, [quiet], [watched])


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
