"""memcache_engine - memcached, for `memcache:` tables, through the client library `pymemcache`.

Writes go in the order in which they came, sets that follow each other in one round trip; all
lookups of a job in another one. Nothing is tried again here. Used by the farm process only.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheServerError

from tlsmgr.farm.backlog import Write
from tlsmgr.farm.engine import NOTHING, Job, Outcome, Value, reason


class MemcacheEngine:
    """One server, at a host and port, or at the path of a UNIX-domain socket."""

    def __init__(
        self, host: str, port: str, path: str, ttl: int, flags: int, connect: float, timeout: float
    ) -> None:
        self._place = host, port, path
        self._times = connect, timeout
        self._ttl = ttl
        self._flags = flags
        self._client: Client | None = None

    def run(self, job: Job) -> Outcome:
        """Do a job; connect first if need be."""
        client = self._client = self._client or self._connect()
        outcome = Outcome()
        for writes in _runs(job.writes):
            try:
                self._write(client, writes)
            except MemcacheServerError as error:
                outcome.refused += len(writes)
                outcome.refusal = reason(error)
        if job.lookups:
            found = client.get_many([keys[0] for keys in job.lookups])
            values = (found.get(keys[0]) for keys in job.lookups)
            outcome.values = [NOTHING if v is None else Value(0, bytes(v)) for v in values]
        elif not job.writes:
            client.version()
        return outcome

    def abort(self) -> None:
        """Shut the connection down, from another thread."""
        client = self._client
        if client is not None and client.sock is not None:
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> Client:
        host, port, path = self._place
        connect, timeout = self._times
        server = path or (host, int(port) if port.isdigit() else socket.getservbyname(port, "tcp"))
        return Client(server, connect_timeout=connect, timeout=timeout, no_delay=not path)

    def _write(self, client: Client, writes: Sequence[Write]) -> None:
        if writes[0].value is None:
            for write in writes:
                for key in write.keys:
                    client.delete(key, noreply=False)
        else:
            values = {write.keys[0]: write.value for write in writes}
            client.set_many(values, expire=self._ttl, noreply=False, flags=self._flags)


def _runs(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    """Yield the runs of writes of one kind."""
    start = 0
    for end in range(1, len(writes) + 1):
        if end == len(writes) or (writes[end].value is None) != (writes[start].value is None):
            yield writes[start:end]
            start = end
