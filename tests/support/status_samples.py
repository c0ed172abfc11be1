"""status_samples - status objects of a daemon, and a control socket that answers with them

with ControlSocket(path, busy(60)) as control:   # path is that of the service socket
    ...
    control.status = busy(61)
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from support.accepting_server import AcceptingServer

from tlsmgr.status_object import (
    SERVING,
    Cache,
    Farm,
    FarmStore,
    Latency,
    Prng,
    Status,
    TicketKey,
    Worker,
    as_json,
)

FARM = Farm(
    key="0123abcd",
    stores=(
        FarmStore("redis://a", ("smtp", "lmtp"), answers=True),
        FarmStore("memcache:/b", ("smtpd",), answers=False),
    ),
    asked=12,
    found=7,
    late=1,
    dropped=2,
)


def busy(seconds: int, workers: int = 2) -> Status:
    """Return the status of a daemon that has served for that many seconds, 100 seeds a second."""
    seeds = Latency(
        p50_us=12.0,
        p99_us=60.0,
        max_us=900.0,
        count=100 * seconds,
        sum_us=1500.0 * seconds,
        buckets=((8, 10 * seconds), (16, 80 * seconds), (64, 10 * seconds), (None, 0)),
    )
    return Status(
        pid=4711,
        version="1.0",
        uptime_seconds=float(seconds),
        state=SERVING,
        config_directory="/etc/postfix",
        workers=tuple(Worker(5000 + i, 3, (100 + i) * seconds) for i in range(workers)),
        caches={
            "smtpd": Cache(size_limit=128 << 20),
            "smtp": Cache(
                entries=1234,
                bytes=64 << 20,
                size_limit=128 << 20,
                lookups=10 * seconds,
                hits=9 * seconds,
                updates=5 * seconds,
                deletes=seconds,
                expired=7,
                evicted=3,
                oldest_seconds=1800.0,
            ),
        },
        ticket_keys=(TicketKey("0123abcd", 600.0, "new"), TicketKey("89abcdef", 2400.0, "old")),
        next_rotation_seconds=1200.0,
        prng=Prng(4, 30.0, "getrandom", 720.0),
        latency={"seed": seeds},
        counters={"connections": 20 * seconds, "seed": 100 * seconds, "tktkey": 5, "malformed": 1,
                  "unknown_keys": 2, "lookup": 10 * seconds, "hits": 9 * seconds},
    )  # fmt: skip


def degraded(status: Status, *reasons: str) -> Status:
    """Return the same daemon, degraded."""
    return replace(status, state="degraded", reasons=reasons)


class ControlSocket(AcceptingServer):
    """A thread that answers each request on the control socket.

    `answer` makes the status from the uptime, which grows by a second with each request.
    """

    def __init__(self, service: Path, answer: Callable[[int], Status]) -> None:
        self.answer = answer
        self.answered = 0
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{service}-control")
        listener.listen()
        super().__init__(listener)

    def take(self, connection: socket.socket) -> None:
        """Answer its one request."""
        with connection, connection.makefile("rwb") as stream:
            stream.readline()
            status = as_json(self.answer(60 + self.answered))
            stream.write(json.dumps(status).encode() + b"\nok\n")
            self.answered += 1
