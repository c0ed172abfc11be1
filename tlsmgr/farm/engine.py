"""engine - what the farm process asks of a shared engine, whichever it is.

An engine is a connection to one server, or to several that act as one, through a client library.
``run`` blocks, in a thread of its own; ``abort`` is called by another thread when it takes too
long. Both may raise any exception of the library: to the caller that is a failure of the engine.

``make`` imports the library, which nothing else in the daemon does, and only in the farm process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from tlsmgr.farm.backlog import Write
from tlsmgr.farm.messages import NO_KEY

CONNECT_TIME = 1.0  # seconds; no client waits for it
REASON_BYTES = 100  # of the text of an exception, which may be what the server sent


class Value(NamedTuple):
    """What a lookup found: which of its keys, and the value; NO_KEY for nothing."""

    which: int
    value: bytes


NOTHING = Value(NO_KEY, b"")


class Job(NamedTuple):
    """Writes, then lookups: the keys of each in the order of preference. Empty: a probe."""

    writes: Sequence[Write]
    lookups: Sequence[tuple[bytes, ...]]
    now: float  # time.monotonic(), for what is left of the lives


@dataclass
class Outcome:
    """What came of a Job: for each lookup what it found, and the writes that were refused.

    ``failure`` says why the engine did not do it at all. ``hopeless``: it never will.
    """

    values: list[Value] = field(default_factory=list, repr=False)
    refused: int = 0
    refusal: str = ""
    failure: str = ""
    hopeless: bool = False


class Engine(Protocol):
    """A connection, made when it is needed, again after a failure."""

    def run(self, job: Job) -> Outcome:
        """Do a job."""

    def abort(self) -> None:
        """Have ``run`` fail soon, in whatever it waits."""


class Settings(NamedTuple):
    """The engine, as the parent passes it to the farm process; ``options`` are its own."""

    kind: str
    name: str  # in log lines
    options: dict[str, Any]
    deadline: float  # seconds

    def __repr__(self) -> str:
        return f"Settings({self.kind}, {self.name})"


def make(settings: Settings, timeout: float) -> Engine:
    """Return the engine. Raises ImportError when the client library is not installed."""
    if settings.kind == "memcache":
        from tlsmgr.farm import memcache_engine

        return memcache_engine.MemcacheEngine(timeout=timeout, **settings.options)
    from tlsmgr.farm import redis_engine

    return redis_engine.RedisEngine(timeout=timeout, **settings.options)


def reason(error: Exception) -> str:
    """Return the text of an exception for a log line."""
    text = " ".join(str(error).split())[:REASON_BYTES]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
