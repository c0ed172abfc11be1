"""hostile_control_client - a program that is a nuisance on a control socket while it is told to.

    python hostile_control_client.py SERVICE_SOCKET KIND

It answers each line on standard input with one on standard output: to `on` when its connections
are there, to `off` when they are gone. End of input ends it. Its priority is the lowest, because
the processor time that it takes itself is no cost of the daemon.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping

CLIENTS = 16  # as many as a daemon serves at once
Nuisance = Callable[[str], Iterator[None]]


def connect(path: str, data: bytes) -> socket.socket:
    """Return a connection on which that was sent, as far as the daemon takes it."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client.connect(path)
    with contextlib.suppress(OSError):
        client.sendall(data)
    return client


def nothing(path: str) -> Iterator[None]:
    """To compare with."""
    while True:
        yield
        time.sleep(0.002)


def does_not_read(path: str) -> Iterator[None]:
    with contextlib.ExitStack() as clients:
        for _ in range(CLIENTS):
            clients.enter_context(connect(path, b"list smtp\n"))
        yield from nothing(path)


def sends_a_byte_at_a_time(path: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(path, b"list smtp match=")) for _ in range(CLIENTS)]
        while True:
            for client in clients:
                yield
                with contextlib.suppress(OSError):  # a request has 8192 bytes at most
                    client.send(b"x")
                time.sleep(0.001)


def sends_garbage(path: str) -> Iterator[None]:
    while True:
        yield
        with connect(path, random.randbytes(50_000) + b"\n") as client:
            client.settimeout(0.05)
            with contextlib.suppress(OSError):
                while client.recv(1 << 16):
                    pass
        time.sleep(0.002)


def leaves_at_once(path: str) -> Iterator[None]:
    while True:
        yield
        connect(path, b"list smtp\n").close()
        time.sleep(0.002)


def reads_slowly(path: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(path, b"list smtp\n")) for _ in range(CLIENTS)]
        while True:
            for client in clients:
                yield
                with contextlib.suppress(OSError):
                    client.recv(512)
                time.sleep(0.001)


KINDS: Mapping[str, Nuisance] = {
    each.__name__: each
    for each in (
        nothing,
        does_not_read,
        sends_a_byte_at_a_time,
        sends_garbage,
        leaves_at_once,
        reads_slowly,
    )
}


def main(path: str, kind: str) -> None:
    """Do as told on standard input."""
    os.nice(19)
    while sys.stdin.readline() == "on\n":
        nuisance = KINDS[kind](f"{path}-control")
        next(nuisance)
        print("on", flush=True)
        while not select.select([0], [], [], 0)[0]:
            next(nuisance)
        sys.stdin.readline()
        del nuisance  # closes its connections
        print("off", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
