"""An engine that answers lookups with what no lookup can mean: to clients it is 'not found'."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import bad_engine
from support.daemon_process import Daemon, MakeDaemon
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.raw_client import NO_SESSION, OK, Connection, expect_seed, lookup, update

pytestmark = pytest.mark.faults

CLIENTS, TIMES = 50, 3
MOST_MEMORY = 80 << 20  # bytes of the farm process


def value(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


REPLIES = {
    "text": b"+OK\r\n",
    "number": b":5\r\n",
    "number without end": b":" + b"9" * 100_000 + b"\r\n",
    "array": b"*2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "array of a milliard": b"*1000000000\r\n:1\r\n",
    "nested arrays": b"*1\r\n" * 50_000 + b":1\r\n",
    "negative length": b"$-5\r\n",
    "length without end": b"$99999999999999999999\r\nx",
    "error with terminal codes": b"-\xff\x1b[2J" + b"y" * 10_000 + b"\r\n",
    "redirection": b"-MOVED 1 127.0.0.1:1\r\n",
    "three replies": b"$-1\r\n$-1\r\n$1\r\nx\r\n",
    "push": b">2\r\n+a\r\n+b\r\n$-1\r\n",
    "empty value": value(b""),
    "value of another version": value(b"\2" + bytes(200)),
    "value of a far day": value(b"\1\xff\xff\xff\xff" + bytes(200)),
    "large value": value(bytes(200_000)),
    "very large value": value(bytes(2_000_000)),
}


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fe-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "s"


def farm_of(daemon: Daemon) -> psutil.Process:
    (process,) = (each for each in daemon.processes() if each.name() == "tlsmgr-farm")
    return process


@pytest.mark.parametrize("kind", REPLIES)
def test_an_engine_that_answers(
    make_daemon: MakeDaemon, tmp_path: Path, path: Path, kind: str
) -> None:
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    with bad_engine.served(path, bad_engine.answering(REPLIES[kind])):
        daemon = make_daemon(
            f"tlsmgr_farm_secret_file={secret}", f"tlsmgr_farm_store=unix://{path}"
        )
        daemon.wait_for_log("answers: sessions are shared$")
        farm = farm_of(daemon)
        clients = [Connection(daemon.socket_path) for _ in range(CLIENTS)]
        for number in range(TIMES):
            for at, client in enumerate(clients):
                client.send(lookup(b"smtp", b"%d-%d" % (number, at)))
            assert {client.read_list() for client in clients} == {NO_SESSION}
            assert clients[0].ask(update(b"smtp", b"mine", b"session")) == OK
            expect_seed(clients[0], 32)
        for client in clients:
            client.close()
        assert farm_of(daemon) == farm
        assert farm.memory_full_info().uss < MOST_MEMORY
    lines = [line for line in daemon.lines() if str(path) in line]
    assert len(lines) <= 2
    assert all(line.isprintable() and len(line) < 300 for line in lines)
