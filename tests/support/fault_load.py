"""fault_load - clients that use a daemon steadily while a test hurts it, and all they notice.

Residents keep one connection; visitors make a new one every few requests. All reconnect as
attr_clnt of Postfix does: a request whose connection breaks is sent once more on a new one.
(attr_clnt sleeps a second in between, these clients RETRY_PAUSE, so they hurt the daemon more.)

An update counts as acknowledged when its reply was status 0. ``count_lost`` looks up all of them at
the end. A lookup that gives an older session than the acknowledged one is counted in ``stale``: the
update was lost, too. A reply that no rule allows is kept in ``wrong``, which must be empty after
any fault.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from support.daemon_process import Daemon
from support.raw_client import (
    NO_SESSION,
    OK,
    Connection,
    data_of,
    found,
    lookup,
    policy,
    seed,
    tktkey,
    update,
)

RETRY_PAUSE = 0.05  # seconds
PAUSE = 0.002  # seconds between two requests of a client
VISIT = 20  # requests of a visitor on one connection
SEED, POLICY, KEY, UPDATE, LOOKUP = "seed", "policy", "tktkey", "update", "lookup"
MIX = {SEED: 8, POLICY: 1, KEY: 2, UPDATE: 5, LOOKUP: 4}
SEED_BYTES, SESSION_BYTES, KEY_BYTES = 32, 200, 88
WINDOW = 100  # lookups in flight when the sessions are counted
BROKEN = (OSError, EOFError, AssertionError)  # how a connection fails


class Wait(NamedTuple):
    """One request. Times in seconds; ``tries`` are the connections that it took."""

    kind: str
    began: float  # time.monotonic()
    seconds: float
    tries: int
    answered: bool


class LoadClient(threading.Thread):
    """One client of the load. Its lists are read when the thread has ended, but for ``waits``."""

    def __init__(self, path: str, number: int, visit: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.waits: list[Wait] = []
        self.acknowledged: dict[bytes, bytes] = {}
        self.wrong: list[str] = []
        self.refused: list[str] = []  # replies of status -1 where a working server has none
        self.stale = 0
        self._older: set[bytes] = set()  # replies with sessions that were replaced later
        self._ids: list[bytes] = []
        self._updates = 0
        self._path, self._number, self._visit = path, number, visit
        self._stop_asked = stop
        self._dice = random.Random(number)
        self._connection: Connection | None = None
        self._left = visit

    def run(self) -> None:
        """Send requests until ``stop`` is set."""
        make = {
            SEED: self._seed,
            POLICY: self._policy,
            KEY: self._key,
            UPDATE: self._update,
            LOOKUP: self._lookup,
        }
        kinds, weights = list(MIX), list(MIX.values())
        while not self._stop_asked.wait(PAUSE):
            make[self._dice.choices(kinds, weights)[0]]()
        self._close()

    # The requests.

    def _seed(self) -> None:
        request, start = seed(SEED_BYTES), b"status\x000\0seed\0"
        self._check(SEED, request, lambda r: len(data_of(r, b"seed")) == SEED_BYTES, start)

    def _policy(self) -> None:
        self._check(POLICY, policy(b"smtp"), lambda _: True, b"status\x000\0cachable\x001\0")

    def _key(self) -> None:
        start = b"status\x000\0keybuf\0"
        self._check(KEY, tktkey(), lambda r: len(data_of(r, b"keybuf")) == KEY_BYTES, start)

    def _update(self) -> None:
        again = self._ids and self._dice.random() < 0.3
        self._updates += 1
        name = self._dice.choice(self._ids) if again else b"%d-%d" % (self._number, self._updates)
        session = self._dice.randbytes(SESSION_BYTES)
        if again:
            self._older.add(found(self.acknowledged[name]))
        if self._check(UPDATE, update(b"smtp", name, session), lambda _: True, OK):
            self.acknowledged[name] = session
            self._ids += [] if again else [name]
        elif again:  # nobody knows which of the two is stored
            self.acknowledged.pop(name, None)
            self._ids.remove(name)

    def _lookup(self) -> None:
        if not self._ids:
            return
        name = self._dice.choice(self._ids)
        self._check(LOOKUP, lookup(b"smtp", name), lambda r: self.judge(name, r), b"status")

    def judge(self, name: bytes, reply: bytes) -> bool:
        """Return whether a lookup of this id may have the reply; count older sessions."""
        is_older = reply in self._older
        self.stale += is_older
        return is_older or reply in (found(self.acknowledged[name]), NO_SESSION)

    def _check(
        self, kind: str, request: bytes, is_right: Callable[[bytes], bool], start: bytes
    ) -> bool:
        """Ask; note a reply that does not start like this or is not right. Return whether it is."""
        reply = self._ask(kind, request)
        if reply is None:
            return False
        if reply.startswith(start) and is_right(reply):
            return True
        failed = reply.startswith(b"status\x004294967295\0")
        (self.refused if failed else self.wrong).append(f"{kind}: {reply[:60]!r}")
        return False

    # The connection.

    def _ask(self, kind: str, request: bytes) -> bytes | None:
        """Return the reply, None when it does not come on a second connection either."""
        began, paused = time.monotonic(), 0.0
        for tries in (1, 2):
            with contextlib.suppress(*BROKEN):
                reply = self._exchange(request)
                self.waits.append(Wait(kind, began, _since(began) - paused, tries, True))
                return reply
            self._close()
            if tries == 1 and not self._stop_asked.wait(RETRY_PAUSE):
                paused = RETRY_PAUSE
        self.waits.append(Wait(kind, began, _since(began) - paused, 2, False))
        return None

    def _exchange(self, request: bytes) -> bytes:
        if self._connection is None:
            self._connection, self._left = Connection(self._path), self._visit
        reply = self._connection.ask(request)
        self._left -= 1
        if not self._left:
            self._close()
        return reply

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _since(began: float) -> float:
    return time.monotonic() - began


class Load:
    """The clients together. ``fault_began`` divides the waits: before it nothing was hurt."""

    def __init__(self, daemon: Daemon, residents: int, visitors: int) -> None:
        self._path = daemon.socket_path
        self._stop = threading.Event()
        self.clients = [
            LoadClient(self._path, number, 0 if number < residents else VISIT, self._stop)
            for number in range(residents + visitors)
        ]
        self.fault_began = float("inf")
        self.lost = 0
        self.remark = ""
        for client in self.clients:
            client.start()

    def stop(self) -> None:
        """Stop all clients, and wait for their last replies."""
        self._stop.set()
        for client in self.clients:
            client.join()

    def count_lost(self) -> None:
        """Look up all that was acknowledged, and count what is not as it was."""
        with Connection(self._path) as connection:
            for client in self.clients:
                names = list(client.acknowledged)
                for start in range(0, len(names), WINDOW):
                    window = names[start : start + WINDOW]
                    connection.send(b"".join(lookup(b"smtp", name) for name in window))
                    for name in window:
                        self._count(client, name, connection.read_list())

    def _count(self, client: LoadClient, name: bytes, reply: bytes) -> None:
        self.lost += reply != found(client.acknowledged[name])
        if not client.judge(name, reply):
            client.wrong.append(f"at the end: {reply[:60]!r}")

    # Figures.

    @property
    def wrong(self) -> list[str]:
        """Return the replies that no rule allows."""
        return [text for client in self.clients for text in client.wrong]

    @property
    def stale(self) -> int:
        """Return how many lookups gave an older session than the acknowledged one."""
        return sum(client.stale for client in self.clients)

    @property
    def refused(self) -> list[str]:
        """Return the replies of status -1 to a seed, a key or an update."""
        return [text for client in self.clients for text in client.refused]

    def waits(self) -> list[Wait]:
        """Return all requests since the fault began, in no order."""
        return [
            w for client in self.clients for w in list(client.waits) if w.began >= self.fault_began
        ]

    @property
    def broken(self) -> list[Wait]:
        """Return the requests that needed a second connection."""
        return [wait for wait in self.waits() if wait.tries > 1]

    @property
    def failed(self) -> list[Wait]:
        """Return the requests without a reply on either connection."""
        return [wait for wait in self.waits() if not wait.answered]

    @property
    def worst(self) -> float:
        """Return the longest wait for a reply on the first connection."""
        return max((wait.seconds for wait in self.waits() if wait.tries == 1), default=0.0)

    def seed_waits(self, is_during: bool) -> list[float]:
        """Return the sorted waits for seeds on a first connection, during the fault or before."""
        return sorted(
            wait.seconds
            for client in self.clients
            for wait in list(client.waits)
            if wait.kind == SEED
            and wait.tries == 1
            and (wait.began >= self.fault_began) is is_during
        )


def part(values: list[float], fraction: float) -> float:
    """Return the value below which this fraction of the sorted values lies; 0 for none."""
    return values[min(len(values) - 1, int(len(values) * fraction))] if values else 0.0
