"""scenes - how the seed load fares while something else goes on: the 99th percentile tells

Each scene is compared with the quiet server, right before it and in each round, with 64 clients.
What a server cannot undergo is left out: only workers of a server that was started here are killed.
The scene that takes minutes is in ``sweep``.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import psutil

from bench.bench import Bench
from bench.measure import Figures, measure
from bench.server import Server

CLIENTS = 64
STALLED = 100
UPDATERS = 8
KILL_INTERVAL = 1.0  # seconds
HALVES = (b"r", b"request\0se", b"request\0update\0cache_type\0smtp\0cache_id\0x\0session\0QUJD")


class SceneRow(NamedTuple):
    """A scene on a server: figures of the seed load without and with it, round by round."""

    scene: str
    server: str
    quiet: list[Figures]
    disturbed: list[Figures]


@contextlib.contextmanager
def stalled(bench: Bench, server: Server) -> Iterator[None]:
    """Clients that have sent a part of a request."""
    with contextlib.ExitStack() as stack:
        for i in range(STALLED):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(1.0)
            with contextlib.suppress(OSError):  # stock takes no more clients after the first few
                client.connect(server.socket)
                client.send(HALVES[i % len(HALVES)])
        yield


@contextlib.contextmanager
def updating(bench: Bench, server: Server) -> Iterator[None]:
    """Clients that do nothing but update."""
    with bench.generators(server, "update", UPDATERS, seconds=bench.seconds + 1) as generators:
        generators.go()
        yield


@contextlib.contextmanager
def killing(bench: Bench, server: Server) -> Iterator[None]:
    """A worker is killed now and then."""
    end = threading.Event()
    killer = threading.Thread(target=_kill_workers, args=(server, end))
    killer.start()
    try:
        yield
    finally:
        end.set()
        killer.join()


def _kill_workers(server: Server, end: threading.Event) -> None:
    while not end.wait(KILL_INTERVAL / 2):
        with contextlib.suppress(psutil.NoSuchProcess):
            if workers := server.workers():
                workers[0].kill()  # the oldest
        end.wait(KILL_INTERVAL / 2)


class Scene(NamedTuple):
    """What goes on meanwhile."""

    meanwhile: Callable[[Bench, Server], contextlib.AbstractContextManager[None]]
    least: float  # seconds, for enough to happen
    purpose: str


SCENES: Mapping[str, Scene] = {
    "stall": Scene(stalled, 1.2, f"{STALLED} clients stop in the middle of a request"),
    "updates": Scene(updating, 0.0, f"{UPDATERS} more clients update flat out"),
    "kill": Scene(killing, 1.7, "a worker is killed every second"),
}
SWEEP = {"sweep": "200,000 sessions are swept and half of them expire; takes 5 minutes a server"}


def scene_rows(servers: Sequence[Server], scenes: Sequence[str]) -> list[SceneRow]:
    """A row for each measurement, without figures."""
    return [
        SceneRow(scene, server.name, [], [])
        for scene in scenes
        for server in servers
        if scene != "kill" or server.workers()
    ]


def run_scenes(bench: Bench, servers: Sequence[Server], rows: Sequence[SceneRow]) -> None:
    """Run them, all servers in turn, several rounds."""
    by_name = {server.name: server for server in servers}
    for _ in range(bench.rounds):
        for row in rows:
            bench.tick(f"{row.scene} {row.server}")
            server = by_name[row.server]
            scene = SCENES[row.scene]
            seconds = max(bench.seconds, scene.least)
            row.quiet.append(seeds(bench, server, seconds))
            row.disturbed.append(seeds(bench, server, seconds, scene.meanwhile(bench, server)))


def seeds(
    bench: Bench,
    server: Server,
    seconds: float,
    meanwhile: contextlib.AbstractContextManager[None] | None = None,
) -> Figures:
    """The figures of the seed load."""
    generators = bench.generators(server, "seed", CLIENTS, seconds=seconds)
    return measure(generators, server, meanwhile)
