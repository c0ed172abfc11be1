"""replies - the replies that a worker makes together, at the end of an iteration.

All seeds with one extract; then the lookups that other hosts have answered; then all updates and
deletes, those of a cache together, because the writers' lock of a cache may have to be waited for.
Their connections are WAITING until then. Runs in a worker; see ``service``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlsmgr.processes.connections import READY, Connection, Connections
from tlsmgr.service import Context, Deferred, answer_seeds, commit_changes, end_lookups
from tlsmgr.wire import Seed

if TYPE_CHECKING:  # a host without a farm does not load it
    from tlsmgr.processes.farm_link import FarmLink

_NOTHING: Sequence[Deferred] = ()


class Replies:
    """The requests of an iteration that wait for its end, and the connections that go on then."""

    def __init__(self, context: Context, connections: Connections, farm: FarmLink | None) -> None:
        self._context = context
        self._connections = connections
        self._farm = farm
        self.seeds: list[tuple[Connection, Seed]] = []
        self.changes: list[tuple[Connection, Deferred]] = []
        self.unread: list[Connection] = []
        """WAITING connections that have sent more than was read so far."""
        self.seeds_sent = self.changes_sent = 0.0
        """Of time.monotonic(): when ``send`` had sent them, or when it began if there were none."""

    def send(self, now: float) -> None:
        """Make and send all of them; it begins at ``now``, of time.monotonic()."""
        self.seeds_sent = self.changes_sent = now
        if self.seeds:
            self._answer_seeds()
            self.seeds_sent = time.monotonic()
        if self._farm is not None and self._farm.is_busy:
            for connection, reply in self._farm.run(time.monotonic(), self._connections):
                self._reply([(connection, None)], [reply])
        self._commit_changes()

    def _answer_seeds(self) -> None:
        waiting, self.seeds = self.seeds, []
        replies = answer_seeds(self._context, [seed for _, seed in waiting])
        self._reply(waiting, replies)

    def _commit_changes(self) -> None:
        fills = _NOTHING if self._farm is None else self._farm.fills
        has_expired = bool(self._context.looked_up) and end_lookups(self._context)
        if not (self.changes or fills or has_expired):
            return
        waiting, self.changes = self.changes, []
        changes, now = [item for _, item in waiting], int(time.time())
        replies = commit_changes(self._context, [*changes, *fills], now)
        if self._farm is not None:
            self._farm.fills = []
            self._farm.write_behind(changes, now)
        self._reply(waiting, replies)
        self.changes_sent = time.monotonic()

    def _reply(self, waiting: Sequence[tuple[Connection, object]], replies: list[bytes]) -> None:
        """Send replies to connections that wait; none is dropped before it got its reply."""
        send = self._connections.send
        for (connection, _), reply in zip(waiting, replies):
            if connection.reader is None:
                connection.state = READY
            else:  # it waits on, for the next iteration
                self.unread.append(connection)
            send(connection, reply)
