"""The measuring tool's load generators, which do the same, and how it sees a running server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from support.bench_tool import need_compiler
from support.daemon_process import Daemon, MakeDaemon, wait_for

from bench import build
from bench.drive import Generators, Tally
from bench.loads import LOADS
from bench.plan import for_filling, for_load, write_plan
from bench.server import serving
from bench.servers import ServerSpec, start_of
from tlsmgr.client import Client
from tlsmgr.log import Fatal
from tlsmgr.wire import ANNOUNCEMENT

SEED_REPLY = b"status\x000\x00seed\x00%b\x00\x00"

# Servers.


def test_a_running_server_is_known_by_all_its_processes(
    tmp_path: Path, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=3")
    with start_of(daemon.socket_path)(ServerSpec(daemon.socket_path, tmp_path, {})) as server:
        expected = {daemon.pid, *daemon.worker_pids()}
        assert len(expected) == 4
        wait_for(  # at times there is a sweep beside them
            lambda: {process.pid for process in server.processes()} == expected,
            f"just these processes: {expected}",
        )
        assert server.workers() == []  # not ours to kill
    assert daemon.is_running


def test_a_process_that_goes_while_it_is_looked_at_is_none(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as passing:
        gone = psutil.Process(passing.pid)
    monkeypatch.setattr("bench.server.family", lambda first: [gone, first])
    first = psutil.Process(daemon.pid)
    assert serving(daemon.socket_path, first) == [first]


# Generators: both do the same.


@pytest.fixture(params=["C", "Python"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Sequence[str]:
    """What starts a load generator."""
    if request.param == "Python":
        return build.GENERATOR_IN_PYTHON
    need_compiler()
    return build.generator_command(tmp_path)


def drive(
    command: Sequence[str], plan: Path, path: str, connections: int = 3, seconds: float = 0.2
) -> Tally:
    with Generators(command, plan, "server", path, connections, seconds) as generators:
        generators.go()
        return generators.result()


def load_plan(directory: Path, name: str) -> Path:
    write_plan(directory / name, for_load(LOADS[name], range(20)))
    return directory / name


def test_filling_stores_every_session_once(
    command: Sequence[str], tmp_path: Path, daemon: Daemon
) -> None:
    write_plan(tmp_path / "fill", for_filling(range(20)))
    tally = drive(command, tmp_path / "fill", daemon.socket_path, seconds=30)
    assert (tally.requests, tally.wrong, tally.lost) == (20, 0, 0)
    assert tally.elapsed < 30e9
    tally = drive(command, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert tally.requests > 20
    assert tally.wrong == 0
    assert tally.histogram.total() == tally.requests
    with Client(daemon.socket_path) as client:
        client.update("smtp", cache_id := read_id(tmp_path / "fill"), b"another session")
        assert client.lookup("smtp", cache_id) == b"another session"
    tally = drive(command, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert 0 < tally.wrong < tally.requests


def read_id(plan: Path) -> bytes:
    """The first cache id in a plan."""
    return plan.read_bytes().split(b"cache_id\0", 1)[1].split(b"\0", 1)[0]


def test_sessions_that_are_not_there_are_wrong(
    command: Sequence[str], tmp_path: Path, daemon: Daemon
) -> None:
    tally = drive(command, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert tally.wrong == tally.requests > 0
    assert tally.first_wrong == b"status\x004294967295\x00sessio"


@contextlib.contextmanager
def scripted(directory: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats each connection as `serve` does, one after the other."""
    path = str(directory / "scripted")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener is shut down at the end
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_replies_in_pieces_are_whole(command: Sequence[str], tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT[:5])
        connection.sendall(ANNOUNCEMENT[5:])
        while connection.recv(1000):
            reply = SEED_REPLY % os.urandom(22).hex().encode()
            for piece in (reply[:1], reply[1:40], reply[40:]):
                connection.sendall(piece)

    with scripted(tmp_path, serve) as path:
        tally = drive(command, load_plan(tmp_path, "seed"), path, connections=1)
    assert tally.requests > 0
    assert (tally.wrong, tally.lost) == (0, 0)


def test_a_request_whose_connection_closes_is_made_again(
    command: Sequence[str], tmp_path: Path
) -> None:
    served = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT)
        while connection.recv(1000):
            served.append(True)
            if len(served) % 3 == 0:
                return
            connection.sendall(SEED_REPLY % os.urandom(22).hex().encode())

    with scripted(tmp_path, serve) as path:
        tally = drive(command, load_plan(tmp_path, "seed"), path, connections=1)
    assert tally.lost > 0
    assert tally.wrong == 0
    assert tally.requests in range(2 * tally.lost - 2, 2 * tally.lost + 3)


def test_a_server_that_falls_silent_is_no_fast_one(command: Sequence[str], tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT)
        while connection.recv(1000):
            pass

    with scripted(tmp_path, serve) as path:
        tally = drive(command, load_plan(tmp_path, "seed"), path, connections=1, seconds=1.2)
    assert (tally.requests, tally.waiting) == (0, 1)
    assert tally.longest > 1e9


def test_a_server_that_is_no_tlsmgr_is_fatal(command: Sequence[str], tmp_path: Path) -> None:
    with (
        scripted(
            tmp_path, lambda connection: connection.sendall(b"220 mail.test ESMTP Postfix\r\n")
        ) as path,
        pytest.raises(Fatal, match=r"server: .* does not announce itself as tlsmgr"),
    ):
        drive(command, load_plan(tmp_path, "seed"), path)


def test_a_server_that_is_not_there_is_fatal(command: Sequence[str], tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="No such file or directory"):
        drive(command, load_plan(tmp_path, "seed"), str(tmp_path / "nothing"))
