"""departure - how a worker ends, from the moment when it accepts no more clients.

On DRAIN_SIGNAL it stays for the clients that it has, see ``drain``. At a reload it also waits for a
call of the successor: then it accepts again until that one serves, see ``bridge``. When the parent
was killed it does what the parent could not: it leaves the message to the successor, once it
accepts no more itself. When the daemon stops, it ends at once.

Runs in a worker; holds no lock.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable

from tlsmgr.processes import bridge, succession
from tlsmgr.processes.connections import Connections
from tlsmgr.processes.drain import Drain
from tlsmgr.processes.inherited import Inherited, Pipes
from tlsmgr.processes.listeners import Listeners
from tlsmgr.processes.parking import NO_BRIDGE
from tlsmgr.processes.scoreboard import RELOADING, RUNNING, STOPPING


class Departure:
    """The end of the worker of this slot; nothing happens until it is told."""

    def __init__(
        self,
        inherited: Inherited,
        slot: int,
        pipes: Pipes,
        epoll: select.epoll,
        listeners: Listeners,
        wake_parent: Callable[[], None],
        add_client: Callable[[int], None],
    ) -> None:
        self._inherited = inherited
        self._slot = slot
        self._pipes = pipes
        self._epoll = epoll
        self._listeners = listeners
        self._wake_parent = wake_parent
        self._add_client = add_client
        self._drain: Drain | None = None  # None: it accepts connections
        self._bridge = NO_BRIDGE  # to a successor, while it may call
        self._is_called = False
        self.is_replaced = False
        """A successor looks after the session files: only clients' requests touch them here."""
        self.is_active = False
        """Something of this has begun; until then there is nothing to ask here."""
        self.is_due = False
        """A drain begins at the end of this iteration."""
        self.stops = False
        """The daemon stops."""

    def note_signal(self, *_: object) -> None:
        """Have the drain begin; the handler of DRAIN_SIGNAL."""
        self.is_due = self.is_active = True

    def watch_parent(self) -> None:
        """Have ``handle`` called when the parent is gone."""
        self._epoll.register(self._pipes.parent_alive_fd, select.EPOLLIN)

    @property
    def may_accept(self) -> bool:
        """Whether clients may be accepted: not when a message to a successor may come instead."""
        return not (self.is_due and self._inherited.scoreboard.ending[0] == RELOADING)

    def note_events(self, events: Iterable[tuple[int, int]], now: float) -> None:
        """Note which connections are in use."""
        if self._drain is not None:
            self._drain.note(events, now)

    def timeout(self, now: float, longest: float) -> float:
        """Return the seconds until ``is_done`` has to look again."""
        return longest if self._drain is None else min(longest, self._drain.timeout(now))

    def handle(self, fd: int) -> None:
        """Handle an event of a descriptor of ours; others are left alone."""
        if fd == self._bridge:
            self._note_call()
        elif fd == self._pipes.parent_alive_fd:
            self._note_parent_end()
        elif fd == self._pipes.bridge_fd and self._drain is None:  # it is open
            self._note_end_without_signal()

    def is_done(self, connections: Connections) -> bool:
        """Begin a drain that is due; close connections that may be; return whether all is over."""
        if self.is_due:
            self.is_due = False
            is_reload = self._inherited.scoreboard.ending[0] == RELOADING
            self._begin(is_reload, self._pipes.bridge_fd if is_reload else NO_BRIDGE)
        if self._drain is None:
            return self.stops
        now = time.monotonic()
        if self._bridge != NO_BRIDGE:
            if not self._is_called and now >= self._drain.began + bridge.CALL_TIME:
                self._end_bridge()
            return self.stops
        for connection in connections.ready():
            if self._drain.may_close(connection.fd, now):
                connections.drop(connection)
        return self.stops or not len(connections) or self._drain.is_over(now)

    def _begin(self, is_reload: bool, bridge_fd: int) -> None:
        """Accept no more, unless a successor calls; at a reload make no more ticket keys."""
        if is_reload:
            self.is_replaced = True
            self._inherited.ticket_keys.freeze()
        if self._drain is None:
            self.is_active = True
            self._drain = Drain(time.monotonic())
            self._listeners.ignore()
            self._bridge = bridge_fd
            if bridge_fd != self._pipes.bridge_fd:
                os.close(self._pipes.bridge_fd)  # a successor calls those that have it
            if bridge_fd == NO_BRIDGE:
                self._close_listeners()
        self._inherited.scoreboard.note_closed(self._slot)
        self._wake_parent()

    def _note_call(self) -> None:
        """Accept again, for a successor that is being loaded; or end that."""
        clients = bridge.answer(self._bridge)
        if clients is None:
            self._end_bridge()
        else:
            self._accept_again(clients)

    def _accept_again(self, clients: list[int]) -> None:
        if not self._is_called:
            self._is_called = True
            self._listeners.listen()
        for client in clients:
            self._add_client(client)

    def _end_bridge(self) -> None:
        """Accept no more, for good."""
        with contextlib.suppress(OSError):  # not registered yet
            self._epoll.unregister(self._bridge)
        if self._is_called:
            self._close_listeners()
        else:
            self._listeners.close()  # the message may still wait there
        os.close(self._bridge)  # so that a successor passes no client on to nobody
        self._bridge = NO_BRIDGE

    def _close_listeners(self) -> None:
        """Accept what waits, and no more."""
        for client in self._listeners.take_all():
            self._add_client(client)
        self._listeners.close()

    def _note_parent_end(self) -> None:
        """Stop with it; after a reload go on to drain; do its part when it was killed."""
        ending = self._inherited.scoreboard.ending[0]
        self._epoll.unregister(self._pipes.parent_alive_fd)
        if ending == STOPPING or (ending == RUNNING and not self._inherited.is_supervised):
            self.stops = self.is_active = True
        elif ending == RUNNING:
            self._replace_parent()
        elif self._drain is None or self._bridge == self._pipes.bridge_fd:
            self._epoll.register(self._pipes.bridge_fd, select.EPOLLIN)  # and wait for the signal

    def _note_end_without_signal(self) -> None:
        """Handle that the parent was killed before it sent the signal; or that this one is late."""
        clients = bridge.answer(self._pipes.bridge_fd)
        if clients is None:
            self._epoll.unregister(self._pipes.bridge_fd)
            self._replace_parent()
        else:
            self._begin(True, self._pipes.bridge_fd)
            self._accept_again(clients)

    def _replace_parent(self) -> None:
        """Leave the message that the parent could not leave."""
        if self._drain is not None or not self._inherited.hands_over:
            self._begin(True, NO_BRIDGE)
            return
        succession.prepare(self._inherited, int(time.time()))
        successor_end, own_end = bridge.make(self._inherited.policy_files)
        self._begin(True, own_end)
        self._epoll.register(own_end, select.EPOLLIN)
        address = self._inherited.listeners[0].getsockname()
        now = int(time.time())
        succession.leave(self._inherited, address, successor_end, self._inherited.parent, now)
        os.close(successor_end)
