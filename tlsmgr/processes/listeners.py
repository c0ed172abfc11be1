"""listeners - how the workers share new connections, without a lock.

Each worker has the listening sockets, which all have inherited, on its own epoll object with
EPOLLEXCLUSIVE: the kernel wakes one idle worker for a connection, the one that has waited longest
in its queue. A worker that accepted goes to the queue's end by registering again, so the idle ones
take turns. One that stayed first would often be busy with the end of the last connection; then the
kernel wakes two for the next one, and a single client that connects for each delivery makes 15 %
fewer. In a burst, when CPUs are short, the worker that runs would take all: one with far more
clients than another steps back for a moment before it accepts. A worker may be stopped or killed
between its wake-up and its accept, and no other one is woken then: so each worker looks for
connections once a second.

When descriptors have run out a worker stops to accept for a longer moment, and leaves connections
to the others and to the backlog. Nothing here is fatal.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
from collections.abc import Callable, Iterator

from tlsmgr import log

ACCEPT_BURST = 4  # connections accepted before the clients at hand are served
LAST_BURST = 100  # connections accepted at most before the socket is closed
ACCEPT_PAUSE = 1.0  # seconds without accepting when descriptors have run out
STEP_BACK = 0.002  # seconds in which another worker may take a connection

_EVENTS = select.EPOLLIN | select.EPOLLEXCLUSIVE


class _Listener:
    """A listening socket, and what is cheaper than its ``accept``."""

    def __init__(self, listener: socket.socket) -> None:
        # The public accept() takes twice as long, for a socket object that nobody needs.
        self._accept: Callable[[], tuple[int, object]] = listener._accept  # type: ignore[attr-defined]
        self._queue = select.poll()
        self._queue.register(listener, select.POLLIN)

    def accept(self) -> int:
        """Return the descriptor of the next connection, which does not block. Raises OSError."""
        connection, _ = self._accept()
        os.set_blocking(connection, False)
        return connection

    def has_more(self) -> bool:
        """Return whether another one waits; a failing accept costs six times as much as this."""
        return bool(self._queue.poll(0))


class Listeners:
    """The listening sockets of one worker."""

    def __init__(self, epoll: select.epoll, sockets: tuple[socket.socket, ...]) -> None:
        self._epoll = epoll
        self._sockets = sockets
        self._by_fd = {listener.fileno(): _Listener(listener) for listener in sockets}
        self.paused_until = 0.0
        """Of time.monotonic(); 0 while connections are accepted."""
        self._gave_way = False  # since it accepted last

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_fd

    def timeout(self, now: float, longest: float) -> float:
        """Return the seconds until ``resume`` has something to do, at most ``longest``."""
        if not self.paused_until:
            return longest
        return min(longest, max(0.0, self.paused_until - now))

    def listen(self) -> None:
        """Register the sockets: the epoll object reports connections from now on."""
        for fd in self._by_fd:
            self._epoll.register(fd, _EVENTS)
        self.paused_until = 0.0

    def resume(self, now: float) -> None:
        """Listen again when the pause is over at ``now`` (time.monotonic())."""
        if self.paused_until and now >= self.paused_until:
            self.listen()

    def ignore(self) -> None:
        """Leave all further connections to others."""
        if not self.paused_until:
            self._pause(math.inf)
        self.paused_until = math.inf

    def take_all(self) -> Iterator[int]:
        """Yield all connections that wait: the kernel may have woken this worker alone for them."""
        for listener in self._by_fd.values():
            with contextlib.suppress(OSError):
                for _ in range(LAST_BURST):
                    yield listener.accept()

    def close(self) -> None:
        """Close the sockets of this process; nothing is accepted any more."""
        self.ignore()
        for each in self._sockets:
            each.close()

    def back_off(self, now: float) -> bool:
        """Step back once before the next ``accept``; return False when that was done already."""
        if self._gave_way:
            return False
        self._pause(now + STEP_BACK)
        self._gave_way = True
        return True

    def accept(self, fd: int, now: float, burst: int = ACCEPT_BURST) -> Iterator[int]:
        """Yield the descriptors of connections that wait at this listener, ``burst`` at most."""
        if self.paused_until:  # since the event came
            return
        self._gave_way = False
        listener = self._by_fd[fd]
        for left in reversed(range(burst)):
            try:
                connection = listener.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                break
            except OSError as error:
                log.error(f"accept connection: {error.strerror}")
                self._pause(now + ACCEPT_PAUSE)
                return
            yield connection
            if not (left and listener.has_more()):
                break
        self._queue_up(fd)

    def rearm(self) -> None:
        """Register again, so that connections that another worker did not take are reported."""
        if not self.paused_until:
            for fd in self._by_fd:
                self._queue_up(fd)

    def _queue_up(self, fd: int) -> None:
        """Go to the end of the kernel's queue; connections that wait now are reported at once."""
        self._epoll.unregister(fd)
        self._epoll.register(fd, _EVENTS)

    def _pause(self, until: float) -> None:
        for fd in self._by_fd:
            self._epoll.unregister(fd)
        self.paused_until = until
