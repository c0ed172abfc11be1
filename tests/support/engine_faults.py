"""engine_faults - all ways in which the engine of a farm fails, as contexts in which it has failed.

Before a context ends the engine is as it was, but empty if it was restarted.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from support import bad_engine
from support.farm_engines import Redis

Fault = Callable[[Redis], AbstractContextManager[None]]


@contextlib.contextmanager
def stopped(redis: Redis) -> Iterator[None]:
    redis.send(signal.SIGSTOP)
    yield
    redis.send(signal.SIGCONT)


@contextlib.contextmanager
def killed(redis: Redis) -> Iterator[None]:
    redis.stop()
    yield
    redis.start()


@contextlib.contextmanager
def needs_password(redis: Redis) -> Iterator[None]:
    """Those that are connected already could go on, so they are disconnected."""
    assert redis.call("CONFIG", "SET", "requirepass", "other") == b"+OK\r\n"
    redis.ask(b"AUTH other\r\nCLIENT KILL TYPE normal\r\n")
    yield
    redis.stop()
    redis.start()


def replaced(behave: bad_engine.Behaviour) -> Fault:
    @contextlib.contextmanager
    def fault(redis: Redis) -> Iterator[None]:
        redis.stop()
        with bad_engine.served(redis.socket, behave):
            yield
        redis.start()

    return fault


@contextlib.contextmanager
def restarted(redis: Redis) -> Iterator[None]:
    assert redis.call("SET", "what", "was there") == b"+OK\r\n"
    redis.stop()
    redis.start()
    assert redis.call("GET", "what") == b"$-1\r\n"
    yield


@contextlib.contextmanager
def full(redis: Redis) -> Iterator[None]:
    assert redis.call("CONFIG", "SET", "maxmemory", "1") == b"+OK\r\n"
    yield
    assert redis.call("CONFIG", "SET", "maxmemory", "0") == b"+OK\r\n"


SILENT: Mapping[str, Fault] = {
    "stopped": stopped,
    "killed": killed,
    "sends a byte a second": replaced(bad_engine.drip),
    "sends garbage": replaced(bad_engine.garbage),
    "sends without end": replaced(bad_engine.endless),
    "hangs up": replaced(bad_engine.close),
    "wants another password": needs_password,
}
"""No lookup gets an answer."""

FAULTS: Mapping[str, Fault] = {**SILENT, "is restarted, empty": restarted, "is full": full}
