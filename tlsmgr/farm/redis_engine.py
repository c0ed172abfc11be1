"""redis_engine - Valkey or Redis, through the client library `redis`.

All writes and lookups of a job go in one pipeline, hence in one round trip. Nothing is tried again
here: the breaker decides when. The reply to a write may be an error (the memory of the server is
full): it is a refusal, and no failure of the engine. Used by the farm process only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from tlsmgr.farm import store_url
from tlsmgr.farm.backlog import Write
from tlsmgr.farm.engine import CONNECT_TIME, NOTHING, Job, Outcome, Value, reason

MOVES = 2  # times that a cluster may answer that a key has moved


class RedisEngine:
    """One server, or the master that Sentinel names, or a cluster."""

    def __init__(self, url: str, password: str, timeout: float) -> None:
        self._url = store_url.parse(url)
        self._options: dict[str, Any] = {
            "password": password or None,
            "socket_timeout": timeout,
            "socket_connect_timeout": max(timeout, CONNECT_TIME),
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "driver_info": None,
        }
        self._client: Any = None

    def run(self, job: Job) -> Outcome:
        """Do a job, in one round trip; connect first if need be."""
        if self._client is None:
            self._client = self._connect()
        if not job.writes and not job.lookups:
            self._client.ping()
            return Outcome()
        pipeline = self._client.pipeline(transaction=False)
        for write in job.writes:
            _write(pipeline, write, job.now)
        for keys in job.lookups:
            for key in keys:
                pipeline.get(key)
        return _outcome(job, pipeline.execute(raise_on_error=False))

    def abort(self) -> None:
        """Close the connections, from another thread."""
        client = self._client
        if isinstance(client, RedisCluster):
            client.disconnect_connection_pools()
        elif client is not None:
            client.connection_pool.disconnect()

    def _connect(self) -> Any:
        url, options = self._url, self._options
        if url.scheme.startswith("sentinel"):
            name, _, database = url.path.strip("/").partition("/")
            common = {**options, **self._options_of_url(), "db": int(database or 0)}
            times = ("socket_timeout", "socket_connect_timeout", "retry", "protocol", "driver_info")
            sentinel = Sentinel(
                list(url.hosts), sentinel_kwargs={key: options[key] for key in times}, **common
            )
            return sentinel.master_for(name)
        if url.scheme.startswith("cluster"):
            nodes = [ClusterNode(*host) for host in url.hosts]
            common = {**options, **self._options_of_url(), "retry": Retry(NoBackoff(), MOVES)}
            return RedisCluster(startup_nodes=nodes, **common)
        return redis.Redis.from_url(url.plain, **options)

    def _options_of_url(self) -> dict[str, Any]:
        """Return user and options of a URL with several hosts, as the library reads them."""
        found: dict[str, Any] = dict(parse_url(self._url.plain))
        if found.pop("connection_class", None) is not None:
            found["ssl"] = True
        return {key: value for key, value in found.items() if key not in ("host", "port", "db")}


def _write(pipeline: Any, write: Write, now: float) -> None:
    if write.value is None:
        for key in write.keys:  # one each: those of a cluster are on different servers
            pipeline.delete(key)
    else:
        pipeline.set(write.keys[0], write.value, px=max(1, int((write.end - now) * 1000)))


def _outcome(job: Job, replies: Sequence[Any]) -> Outcome:
    """Sort the replies; raise the error of a lookup, as the engine is of no use then."""
    outcome = Outcome()
    rest = iter(replies)
    for write in job.writes:
        for reply in _next(rest, 1 if write.value is not None else len(write.keys)):
            if isinstance(reply, Exception):
                outcome.refused += 1
                outcome.refusal = reason(reply)
    for keys in job.lookups:
        found = NOTHING
        for which, reply in enumerate(list(_next(rest, len(keys)))):
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, bytes) and found is NOTHING:
                found = Value(which, reply)
        outcome.values.append(found)
    return outcome


def _next(replies: Iterator[Any], count: int) -> Iterator[Any]:
    for _ in range(count):
        yield next(replies)
