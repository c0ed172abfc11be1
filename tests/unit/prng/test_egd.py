"""The job that stirs an external source into the pool: real EGD servers, good and bad."""

import os
import resource
import socket
from pathlib import Path

import pytest
from support import egd_server
from support.egd_server import EgdServer, Manner
from support.own_descriptors import own_descriptors
from support.prng_children import wait_for
from support.recording_pool import RecordingPool, warnings
from support.recording_pool import pool as pool
from support.source_fixtures import PERIOD, assert_silent, finish, opened, time_out
from support.source_fixtures import socket_path as socket_path

from tlsmgr.prng.reseed import POLL, Reseeder
from tlsmgr.prng.sources import TIME_LIMIT, Egd
from tlsmgr.prng.timers import RETRY


@pytest.mark.parametrize(("count", "question"), [(1, b"\1\1"), (32, b"\1 "), (1000, b"\1\xff")])
def test_egd(
    pool: RecordingPool,
    socket_path: Path,
    capfd: pytest.CaptureFixture[str],
    count: int,
    question: bytes,
) -> None:
    with EgdServer(socket_path) as server:
        reseeder = opened(f"egd:{socket_path}", pool, count)
        for _ in range(3):
            assert 1 <= finish(reseeder) <= PERIOD
        assert [len(data) for data in pool.stirred] == [question[1]] * 3
        assert server.questions == [question] * 3
        assert server.clients == 1  # the connection is kept
    assert_silent(capfd)


@pytest.mark.parametrize(
    ("manner", "length"), [(egd_server.generous, 200), (egd_server.sparing, 4)]
)
def test_egd_server_decides_how_much(
    pool: RecordingPool, socket_path: Path, manner: Manner, length: int
) -> None:
    with EgdServer(socket_path, manner):
        finish(opened(f"egd:{socket_path}", pool))
    assert [len(data) for data in pool.stirred] == [length]


FAULTS: dict[str, tuple[Manner, str]] = {
    "unwilling": (egd_server.unwilling, "EGD server egd reports zero bytes available"),
    "short": (egd_server.short, "cannot read 32 bytes from EGD server egd: lost connection"),
    "dying": (egd_server.dying, "cannot read 1 bytes from EGD server egd: lost connection"),
    "stuck": (egd_server.stuck, "is stuck: one byte 31 times in a row or more"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_egd_fault_is_a_warning_and_heals(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    manner, text = FAULTS[name]
    with EgdServer(socket_path, manner, egd_server.willing):
        reseeder = opened("egd:egd", pool)
        assert 1 <= finish(reseeder) <= RETRY
        assert pool.stirred == []
        assert warnings(capfd) == [f"tls_random_source = egd:egd: {text}"]
        if name == "stuck":
            connection_of(reseeder).shutdown(socket.SHUT_RDWR)  # it was fine, and would be kept
            finish(reseeder)
            capfd.readouterr()
        finish(reseeder)
        assert [len(data) for data in pool.stirred] == [32]
        assert "egd:egd: works again" in capfd.readouterr().err


def test_egd_when_descriptors_have_run_out(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with EgdServer(socket_path, egd_server.willing):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            reseeder = opened("egd:egd", pool)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert warnings(capfd) == [
            "tls_random_source = egd:egd: cannot connect to EGD server egd: Too many open files"
        ]
        finish(reseeder)
        assert len(pool.stirred) == 1


def test_egd_server_that_hangs_up_at_once(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with EgdServer(socket_path, egd_server.gone):
        finish(opened("egd:egd", pool))
    (text,) = warnings(capfd)
    # Whether the question could still be written is a matter of time.
    assert text.startswith("tls_random_source = egd:egd: cannot ")
    assert "EGD server egd: " in text
    assert pool.stirred == []


@pytest.mark.parametrize("manner", [egd_server.silent, egd_server.stalling])
def test_egd_server_that_makes_us_wait_for_too_long(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str], manner: Manner
) -> None:
    with EgdServer(socket_path, manner, egd_server.willing):
        reseeder = opened("egd:egd", pool)
        assert TIME_LIMIT <= time_out(reseeder, 0.0) <= 3 * TIME_LIMIT
        assert warnings(capfd)[0].endswith("bytes from EGD server egd: timed out")
        assert pool.stirred == []
        finish(reseeder)
        assert len(pool.stirred) == 1


def test_slow_egd_server_costs_nothing_but_time(pool: RecordingPool, socket_path: Path) -> None:
    with EgdServer(socket_path, egd_server.slow) as server:
        reseeder = opened("egd:egd", pool)
        for _ in range(50):
            assert reseeder.run(0.0) == POLL  # comes back at once each time
            pool.extract(32)
        assert pool.stirred == []
        server.go_on.set()
        finish(reseeder)
    assert [len(data) for data in pool.stirred] == [32]


def test_egd_server_that_is_not_there(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reseeder = opened("egd:egd", pool)
    assert 1 <= reseeder.run(0.0) <= RETRY
    assert warnings(capfd) == [
        "tls_random_source = egd:egd: cannot connect to EGD server egd: No such file or directory"
    ]
    with EgdServer(socket_path):
        finish(reseeder)
        assert len(pool.stirred) == 1
    finish(reseeder)  # it went away
    finish(reseeder)
    texts = warnings(capfd)
    assert len(pool.stirred) == 1
    assert texts[-1].endswith("cannot connect to EGD server egd: No such file or directory")


def test_egd_server_that_is_dead(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path))
    finish(opened("egd:egd", pool))
    assert warnings(capfd)[0].endswith("cannot connect to EGD server egd: Connection refused")


def test_egd_server_that_does_not_accept(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path))
        listener.listen(0)
        first = opened("egd:egd", pool)  # fills the queue
        assert first.run(0.0) == POLL
        finish(opened("egd:egd", pool))
        assert warnings(capfd)[0].endswith(
            "cannot connect to EGD server egd: Resource temporarily unavailable"
        )


def test_egd_server_that_repeats_itself(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with EgdServer(socket_path, egd_server.repeating):
        reseeder = opened("egd:egd", pool)
        for _ in range(5):
            finish(reseeder)
    assert len(pool.stirred) == 1
    assert warnings(capfd) == ["tls_random_source = egd:egd: delivers the same bytes again"]


def test_egd_path_too_long(
    pool: RecordingPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    finish(opened(f"egd:{tmp_path}/{'x' * 200}", pool))
    assert warnings(capfd)[0].endswith("path too long")


def test_no_descriptor_is_left_behind(pool: RecordingPool, socket_path: Path) -> None:
    """Neither by readings nor by opening again after failures."""
    with EgdServer(socket_path, egd_server.dying) as server:
        reseeders = [
            opened(value, pool) for value in ("dev:/dev/urandom", "egd:egd", "/etc/passwd")
        ]
        reseeders.append(opened("dev:/dev/null", pool))  # a failure each time
        before = own_descriptors()
        for _ in range(5):
            for reseeder in reseeders:
                finish(reseeder)
        assert server.clients > 4
        assert len(own_descriptors()) <= len(before) + 1  # the server's connection


def test_an_answer_to_a_process_that_died_is_none_to_us(
    pool: RecordingPool, socket_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process asked, read half of the answer and died; another one has the connection as well."""
    with EgdServer(socket_path, egd_server.slow) as server:
        reseeder = opened("egd:egd", pool)

        assert reseeder.run(0.0) == POLL
        assert server.pauses.wait(30)  # it has sent the count and 15 bytes
        assert reseeder.run(0.0) == POLL
        reseeder._reading = None  # as it is in a process that was forked before the question
        server.go_on.set()
        wait_for(lambda: len(waiting_input(reseeder)) == 17, "the rest of the answer")
        finish(reseeder)
    assert [len(data) for data in pool.stirred] == [32]
    assert warnings(capfd) == []


def connection_of(reseeder: Reseeder) -> socket.socket:
    """The connection to the server."""
    assert isinstance(reseeder._source, Egd)
    assert reseeder._source._socket
    return reseeder._source._socket


def waiting_input(reseeder: Reseeder) -> bytes:
    """Return what can be read from the server, and leave it there."""
    try:
        return connection_of(reseeder).recv(300, socket.MSG_PEEK)
    except BlockingIOError:
        return b""
