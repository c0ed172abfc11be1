"""in_turn - two daemons that are asked in turn, request by request, by one client each.

What else goes on on the machine meets both alike, so that small differences can be seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from itertools import cycle

from support.daemon_process import Daemon
from support.fault_load import part
from support.raw_client import OK, Connection, found, lookup, policy, seed, tktkey, update

SESSION = b"a session that is here\0" * 50
REQUESTS: Mapping[str, tuple[bytes, bytes]] = {
    "seed": (seed(32), b"status\x000\0seed\0"),
    "policy": (policy(b"smtp"), b"status\x000\0cachable\x001\0"),
    "ticket key": (tktkey(), b"status\x000\0keybuf\0"),
    "local hit": (lookup(b"smtp", b"here"), found(SESSION)),
}
"""Each kind of request that needs nothing but this host, and how its reply begins."""

Times = dict[str, list[float]]


class InTurn:
    """The daemon that is looked at, and the one that it is compared with. Use `with`."""

    def __init__(self, daemon: Daemon, other: Daemon) -> None:
        self._connections = [Connection(each.socket_path) for each in (daemon, other)]
        for connection in self._connections:
            assert connection.ask(update(b"smtp", b"here", SESSION)) == OK
        self._times: tuple[Times, Times] = ({}, {})

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def ask(self, seconds: float) -> None:
        """Ask both in turn, for that long; each is the first as often as the other."""
        end = time.monotonic() + seconds
        for first in cycle((0, 1)):
            for kind, (request, start) in REQUESTS.items():
                for which in (first, 1 - first):
                    began = time.perf_counter()
                    reply = self._connections[which].ask(request)
                    taken = time.perf_counter() - began
                    assert reply.startswith(start), reply[:60]
                    self._times[which].setdefault(kind, []).append(taken)
            if time.monotonic() > end:
                return

    def ratios(self, fraction: float) -> dict[str, float]:
        """Return how many times as long a request of each kind took, and begin again.

        Compared are the times below which this fraction of all lies.
        """
        found, other = (
            {kind: part(sorted(times[kind]), fraction) for kind in REQUESTS}
            for times in self._times
        )
        count = len(self._times[0]["seed"])
        self._times = ({}, {})
        ratios = {kind: found[kind] / other[kind] for kind in REQUESTS}
        shown = ", ".join(
            f"{kind} {1e6 * found[kind]:.0f} us, {ratio:.3f} times the other"
            for kind, ratio in ratios.items()
        )
        print(f"{fraction:.0%} of {count}: {shown}; load {os.getloadavg()[0]:.1f}")
        return ratios
