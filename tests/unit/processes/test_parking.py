"""Descriptors that wait in the backlog of a socket, between clients of all kinds."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.own_descriptors import own_descriptors

from tlsmgr.processes.parking import Parked, arrivals, park


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that nobody accepts from."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(tmp_path / "socket"))
        made.listen(3)
        made.setblocking(False)
        yield made


@pytest.fixture
def pipe() -> Iterator[int]:
    """The reading end of a pipe with a text in it."""
    reader, writer = os.pipe()
    os.write(writer, b"text")
    os.close(writer)
    yield reader
    os.close(reader)


def client_of(listener: socket.socket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(listener.getsockname())
    return client


def test_between_clients(listener: socket.socket, pipe: int) -> None:
    """What is parked comes with its sender; of a client nothing is read."""
    before = own_descriptors()
    with client_of(listener) as silent, client_of(listener) as eager:
        eager.send(b"W\0request")
        park(listener.getsockname(), pipe)
        first, second, parked = arrivals(listener.fileno())
        assert isinstance(first, int)
        assert isinstance(second, int)
        assert isinstance(parked, Parked)
        assert (parked.pid, parked.uid) == (os.getpid(), os.geteuid())
        assert os.read(parked.message, 10) == b"text"
        assert os.read(second, 20) == b"W\0request"
        with pytest.raises(BlockingIOError):
            os.read(first, 1)
        os.write(first, b"greeting")
        assert silent.recv(20) == b"greeting"
        for descriptor in (first, second, parked.message):
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)
    assert list(arrivals(listener.fileno())) == []
    assert own_descriptors() == before


def test_it_waits_when_its_sender_has_gone(listener: socket.socket, pipe: int) -> None:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            park(listener.getsockname(), pipe)
        os._exit(0)
    os.waitpid(child, 0)
    (parked,) = arrivals(listener.fileno())
    assert isinstance(parked, Parked)
    assert parked.pid == child
    os.close(parked.message)


def test_the_caller_may_stop_early(listener: socket.socket, pipe: int) -> None:
    """What is behind stays in the backlog."""
    park(listener.getsockname(), pipe)
    with client_of(listener):
        parked = next(arrivals(listener.fileno()))
        assert isinstance(parked, Parked)
        os.close(parked.message)
        (client,) = arrivals(listener.fileno())
        assert isinstance(client, int)
        os.close(client)


@pytest.mark.parametrize("text", [b"W", b"\0", b"WW\0", b"seed", b"W\0x"])
@pytest.mark.parametrize("count", [1, 2, 100])
def test_descriptors_of_strangers(
    listener: socket.socket, pipe: int, text: bytes, count: int
) -> None:
    """None of them stays open."""
    before = own_descriptors()
    with client_of(listener) as client:
        socket.send_fds(client, [text], [pipe] * count)
        for arrival in arrivals(listener.fileno()):
            if isinstance(arrival, Parked):
                arrival.close()
            else:
                os.close(arrival)
    assert own_descriptors() == before


def test_full_backlog(listener: socket.socket, pipe: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(client_of(listener))
        with pytest.raises(BlockingIOError):
            park(listener.getsockname(), pipe)
        for arrival in arrivals(listener.fileno()):
            assert isinstance(arrival, int)
            os.close(arrival)


def test_a_socket_that_is_gone(listener: socket.socket, pipe: int) -> None:
    os.unlink(listener.getsockname())
    with pytest.raises(FileNotFoundError):
        park(listener.getsockname(), pipe)


def test_another_kind_of_socket(pipe: int) -> None:
    with socket.socket() as inet:
        inet.bind(("127.0.0.1", 0))
        inet.listen()
        inet.setblocking(False)
        with pytest.raises(TypeError):
            park(inet.getsockname(), pipe)
        assert list(arrivals(inet.fileno())) == []
