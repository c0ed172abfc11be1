"""The measuring tool's loads, and its generator, which sends them and checks the replies."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.daemon_process import Daemon
from support.scripted_server import ScriptedServer

from bench import loads
from bench.drive import Generators, Tally, _shares
from bench.loads import LOADS, write_filling_plan, write_load_plan
from tlsmgr.client import Client
from tlsmgr.client.connection import encode
from tlsmgr.log import Fatal
from tlsmgr.wire import ANNOUNCEMENT

SEED_REPLY = b"status\x000\x00seed\x00%b\x00\x00"

# Loads.


def test_ids_and_sessions_have_their_sizes() -> None:
    ids = {loads.cache_id(number) for number in range(1000)}
    assert len(ids) == 1000
    assert {len(each) for each in ids} == {loads.ID_BYTES} == {120}
    assert len(loads.cache_id(499_999)) == 120
    assert len(loads.session(1)) == loads.SESSION_BYTES == 1200
    assert loads.session(1) != loads.session(2)


def test_an_update_stores_what_the_lookup_expects() -> None:
    update, lookup = loads.exchange("update", 77), loads.exchange("lookup", 77)
    assert update.tail == lookup.want_tail
    assert lookup.reply_length == len(lookup.want + lookup.want_tail)
    name = [(b"request", b"lookup"), (b"cache_type", b"smtp"), (b"cache_id", loads.cache_id(77))]
    assert lookup.head + lookup.tail == encode(name)


# Generators.


def drive(
    program: Path, plan: Path, path: str | Path, connections: int = 3, seconds: float = 0.2
) -> Tally:
    with Generators(program, plan, "server", str(path), connections, seconds) as generators:
        generators.go()
        return generators.result()


def load_plan(directory: Path, name: str) -> Path:
    write_load_plan(directory / name, LOADS[name], range(20))
    return directory / name


def test_clients_are_divided_among_generators() -> None:
    assert _shares(7, 3) == [3, 2, 2]
    assert _shares(2, 3) == [1, 1]


def test_filling_stores_every_session_once(generator: Path, tmp_path: Path, daemon: Daemon) -> None:
    write_filling_plan(tmp_path / "fill", range(20))
    tally = drive(generator, tmp_path / "fill", daemon.socket_path, seconds=30)
    assert (tally.requests, tally.wrong, tally.lost) == (20, 0, 0)
    assert tally.elapsed < 30e9
    tally = drive(generator, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert tally.requests > 20
    assert tally.wrong == 0
    assert tally.histogram.total() == tally.requests
    with Client(daemon.socket_path) as client:
        client.update("smtp", cache_id := read_id(tmp_path / "fill"), b"another session")
        assert client.lookup("smtp", cache_id) == b"another session"
    tally = drive(generator, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert 0 < tally.wrong < tally.requests


def read_id(plan: Path) -> bytes:
    """The first cache id in a plan."""
    return plan.read_bytes().split(b"cache_id\0", 1)[1].split(b"\0", 1)[0]


def test_sessions_that_are_not_found_are_wrong_replies(
    generator: Path, tmp_path: Path, daemon: Daemon
) -> None:
    tally = drive(generator, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert tally.wrong == tally.requests > 0
    assert tally.first_wrong == b"status\x004294967295\x00sessio"


def scripted(directory: Path, serve: Callable[[socket.socket], None]) -> ScriptedServer:
    """A server that treats each connection as `serve` does, one after the other."""

    def step(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the generator has exited
            serve(connection)

    return ScriptedServer(directory / "scripted", *itertools.repeat([step], 100_000))


def test_replies_in_pieces_are_put_together(generator: Path, tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT[:5])
        connection.sendall(ANNOUNCEMENT[5:])
        while connection.recv(1000):
            reply = SEED_REPLY % os.urandom(22).hex().encode()
            for piece in (reply[:1], reply[1:40], reply[40:]):
                connection.sendall(piece)

    with scripted(tmp_path, serve) as server:
        tally = drive(generator, load_plan(tmp_path, "seed"), server.path, connections=1)
    assert tally.requests > 0
    assert (tally.wrong, tally.lost) == (0, 0)


def test_a_request_whose_connection_closes_is_made_again(generator: Path, tmp_path: Path) -> None:
    served = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT)
        while connection.recv(1000):
            served.append(True)
            if len(served) % 3 == 0:
                return
            connection.sendall(SEED_REPLY % os.urandom(22).hex().encode())

    with scripted(tmp_path, serve) as server:
        tally = drive(generator, load_plan(tmp_path, "seed"), server.path, connections=1)
    assert tally.lost > 0
    assert tally.wrong == 0
    assert tally.requests in range(2 * tally.lost - 2, 2 * tally.lost + 3)


def test_a_server_that_stops_replying_is_not_fast(generator: Path, tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT)
        while connection.recv(1000):
            pass

    with scripted(tmp_path, serve) as server:
        tally = drive(
            generator, load_plan(tmp_path, "seed"), server.path, connections=1, seconds=1.1
        )
    assert (tally.requests, tally.waiting) == (0, 1)
    assert tally.longest > 1e9


def test_a_server_that_is_no_tlsmgr_is_fatal(generator: Path, tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"220 mail.test ESMTP Postfix\r\n")

    with (
        scripted(tmp_path, serve) as server,
        pytest.raises(Fatal, match=r"server: .* does not announce itself as tlsmgr"),
    ):
        drive(generator, load_plan(tmp_path, "seed"), server.path)


def test_a_missing_server_is_fatal(generator: Path, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="No such file or directory"):
        drive(generator, load_plan(tmp_path, "seed"), tmp_path / "nothing")
