"""The bridge from old workers to their successor: calls, clients, ends, and nothing left open."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.own_descriptors import own_descriptors

from tlsmgr.processes.bridge import Met, answer, call_late, end, make, meet, state_of
from tlsmgr.processes.parking import Parked, park


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket in a directory of ours; nothing may be left open at the end."""
    before = own_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(tmp_path / "socket"))
        made.listen(10)
        yield made
    assert own_descriptors() == before


def leave(listener: socket.socket, *descriptors: int) -> None:
    """Park a message, which is an empty file here, with these descriptors behind it."""
    memory = os.memfd_create("test")
    park(listener.getsockname(), memory, *descriptors)
    os.close(memory)


def leave_bridge(listener: socket.socket, state: bytes = b"") -> int:
    """Park a message with one end of a bridge; return the other end, the old workers'."""
    successor, workers = make(state)
    leave(listener, successor)
    os.close(successor)
    return workers


@contextlib.contextmanager
def met_by(listener: socket.socket) -> Iterator[Met]:
    """What a successor meets, which has a message; its end of the bridge closes at the end."""
    met = meet(listener.fileno())
    assert isinstance(met.parked, Parked)
    yield met
    met.parked.close()
    close(*met.clients)


def client_of(listener: socket.socket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(listener.getsockname())
    return client


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def test_old_workers_get_the_clients_that_were_met(listener: socket.socket) -> None:
    with client_of(listener) as client:
        workers = leave_bridge(listener)
        with met_by(listener) as met:
            assert met.clients == []
            (passed,) = answer(workers) or []
            os.write(passed, b"greeting")
            assert client.recv(20) == b"greeting"
            close(passed)
            assert answer(workers) == [], "it is called, and open"
    assert answer(workers) is None
    close(workers)


def test_a_call_without_clients(listener: socket.socket) -> None:
    workers = leave_bridge(listener)
    with met_by(listener):
        assert answer(workers) == []
    assert answer(workers) is None
    close(workers)


def test_a_state_that_is_too_long_to_be_sent(listener: socket.socket) -> None:
    with client_of(listener):
        workers = leave_bridge(listener, bytes(1 << 24))
        with met_by(listener) as met:
            assert len(met.clients) == 1
    close(workers)


def expect_call(listener: socket.socket) -> None:
    """A client that waits is met, and passed on to the old workers."""
    with client_of(listener):
        workers = leave_bridge(listener)
        with met_by(listener) as met:
            passed = answer(workers) or []
            assert len(passed) == 1
            assert met.clients == []
    close(workers, *passed)


def test_an_abstract_name_has_no_directory() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0tlsmgr-test-{os.getpid()}")
        listener.listen(10)
        expect_call(listener)


def test_our_own_user_is_trusted_in_a_directory_of_another(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a socket in /run that systemd made."""
    ours, make_parked = 12345, Parked.__init__

    def from_us(self: Parked, message: int, bridge: int, pid: int, _uid: int) -> None:
        make_parked(self, message, bridge, pid, ours)

    monkeypatch.setattr(Parked, "__init__", from_us)
    monkeypatch.setattr("tlsmgr.processes.bridge.os.geteuid", lambda: ours)
    expect_call(listener)


def test_nobody_is_called_when_a_file_of_the_policy_changed(
    listener: socket.socket, tmp_path: Path
) -> None:
    """Nor when one has come or gone. The clients are the successor's."""
    file, none = tmp_path / "main.cf", tmp_path / "a\tb"
    file.write_text("1")
    steps: list[Callable[[], object]] = [
        lambda: file.write_text("22"),
        file.unlink,
        file.touch,
        none.touch,
    ]
    for change in [None, *steps]:
        with client_of(listener):
            workers = leave_bridge(listener, state_of([str(file), str(none)]))
            if change is not None:
                change()
            with met_by(listener) as met:
                passed = answer(workers) or []
                assert (len(passed), len(met.clients)) == ((0, 1) if change else (1, 0))
            assert answer(workers) is None
        close(workers, *passed)


def test_a_file_that_was_changed_while_it_was_read_counts_as_changed(tmp_path: Path) -> None:
    file = tmp_path / "main.cf"
    file.touch()
    now, paths = file.stat().st_ctime, [str(file), str(tmp_path / "none")]
    assert state_of(paths, "x", now + 1) == state_of(paths, "x")
    for began in (now - 1, now, now + 0.001):
        assert state_of(paths, "x", began) != state_of(paths, "x")


@pytest.mark.parametrize("policy", ["same", "another", ""])
def test_a_late_call_is_for_the_same_policy(
    listener: socket.socket, tmp_path: Path, policy: str
) -> None:
    """Old workers without a policy are not called either. The clients are the successor's."""
    file = tmp_path / "main.cf"
    with client_of(listener):
        workers = leave_bridge(listener, state_of([str(file)], policy and "same"))
        file.touch()
        with met_by(listener) as met:
            assert answer(workers) == []
            call_late(met, policy)
            passed = answer(workers) or []
            assert (len(passed), len(met.clients)) == ((1, 0) if policy == "same" else (0, 1))
    close(workers, *passed)


def test_a_message_that_is_dropped_ends_the_bridge(listener: socket.socket) -> None:
    """As stock does, and the kernel when the socket is closed."""
    workers = leave_bridge(listener)
    connection, _ = listener.accept()
    assert connection.recv(10) == b"W\0"
    connection.close()
    assert answer(workers) is None
    close(workers)


def test_old_workers_that_have_gone(listener: socket.socket) -> None:
    """The clients stay with the successor."""
    with client_of(listener):
        os.close(leave_bridge(listener))
        with met_by(listener) as met:
            assert len(met.clients) == 1


def test_a_successor_that_waits_for_their_end() -> None:
    """Not for longer than it wants to; and what is no bridge is just closed."""
    before = own_descriptors()
    for closes in (True, False):
        successor, workers = make(b"state")
        child = os.fork()
        if not child:
            try:
                os.close(successor)
                while answer(workers) is not None:
                    pass
                os._exit(0)
            finally:
                os._exit(1)
        if closes:
            close(workers)
        end(successor, 600.0 if closes else 0.01)
        assert os.waitpid(child, 0)[1] == 0, "it has noticed"
        if not closes:
            close(workers)
    reader, writer = os.pipe()
    end(writer, 600.0)
    assert os.read(reader, 1) == b""
    close(reader)
    assert own_descriptors() == before


@pytest.mark.parametrize("kind", ["none", "pipe", "stranger"])
def test_who_gets_no_client(listener: socket.socket, kind: str, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """No bridge, no socket, and one from a user who could not replace the socket."""
    reader, writer = os.pipe()
    successor, workers = make()
    with client_of(listener):
        leave(listener, *{"none": [], "pipe": [writer], "stranger": [successor]}[kind])
        close(successor, writer)
        if kind == "stranger":
            monkeypatch.setattr("tlsmgr.processes.parking._integers", lambda _: [1, 12345, 1])
            monkeypatch.setattr(
                "tlsmgr.processes.parking._descriptors_in",
                lambda rights: [int.from_bytes(rights[0][2][i : i + 4], "little") for i in (0, 4)],
            )
        with met_by(listener) as met:
            assert len(met.clients) == 1
    close(reader, workers)


def test_nothing_is_there(listener: socket.socket) -> None:
    met = meet(listener.fileno())
    assert met.parked is None
    assert met.clients == []


def test_it_imports_next_to_nothing() -> None:
    """Clients wait for it at a reload."""
    code = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); before = set(sys.modules);"
        "import tlsmgr.processes.bridge; print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert [name for name in run.stdout.split() if not name.startswith("tlsmgr")] == [
        "__future__",
        "_socket",
    ], run.stderr
