"""inherited - the record of everything that a child process inherits from the parent.

The parent makes it before the first fork and passes the same record to every child. A child closes
every descriptor that is not in the record, apart from those of the log, its pipes, and 0 to 2. The
record is frozen; ``with_files`` and ``without_files`` return another one for children to come.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from tlsmgr import log
from tlsmgr.latency import LatencyTable
from tlsmgr.prng.pool import Pool
from tlsmgr.processes.scoreboard import Scoreboard
from tlsmgr.sessions.file import CLOSED, StoreFile
from tlsmgr.sessions.rules import CacheRules
from tlsmgr.sessions.shared import ProcessNumber, SharedCache
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import Stats
from tlsmgr.tickets import TicketKeys

if TYPE_CHECKING:  # a host without a farm does not load it
    from tlsmgr.processes.farm_plan import FarmPlan


class Pipes(NamedTuple):
    """A child's pipe ends: ``parent_alive_fd`` reads EOF when the parent is gone.

    ``bridge_fd`` is the end of old workers, for a reload; see ``bridge``.
    """

    parent_alive_fd: int
    wakeup_fd: int  # a byte written here wakes the parent
    bridge_fd: int


class CachePlan(NamedTuple):
    """One cache: its rules, its shared part, and its file; None: all lookups miss.

    ``table`` is its database as in main.cf.
    """

    rules: CacheRules
    shared: SharedCache
    file: StoreFile | None
    table: str = ""


@dataclass(frozen=True)
class Inherited:
    """All that the parent made before it forked. Times in seconds."""

    memory: SharedMemory
    pool: Pool
    ticket_keys: TicketKeys
    stats: Stats
    latency: LatencyTable
    scoreboard: Scoreboard
    timeouts: dict[bytes, int]  # cache type: sanitised session timeout
    caches: tuple[CachePlan, ...]
    process_number: ProcessNumber
    listeners: tuple[socket.socket, ...]
    source: str  # how warnings name a client: "tlsmgr socket"
    client_timeout: int  # for half requests and replies that the client does not read
    hands_over: bool = False  # at a reload, keys and counts go to the successor
    policy: Mapping[str, str] = field(default_factory=dict)  # see config.policy_digest
    policy_files: bytes = b""  # see bridge.state_of
    is_supervised: bool = False  # somebody holds the listening sockets and starts a successor
    farm: FarmPlan | None = None  # None: sessions are not shared with other hosts
    parent: int = field(default_factory=os.getpid)  # the process that makes this record

    def with_files(self, files: Sequence[StoreFile | None]) -> Inherited:
        """Return the record with these files of its caches, in the same order."""
        plans = (plan._replace(file=file) for plan, file in zip(self.caches, files))
        return replace(self, caches=tuple(plans))

    def without_files(self) -> Inherited:
        """Return the record for a process that touches no file, but knows whether others do."""
        files = (plan.file and plan.file._replace(directory=CLOSED) for plan in self.caches)
        return self.with_files(list(files))

    def descriptors(self) -> set[int]:
        """Return the descriptors that a worker keeps for life, apart from its pipes."""
        listeners = {listener.fileno() for listener in self.listeners}
        return listeners | self.alarms() | set(log.descriptors())

    def alarms(self) -> set[int]:
        """Return the descriptors by which damage of a session file is reported."""
        return {plan.file.mark.alarm for plan in self.caches if plan.file is not None}

    def farm_end(self, slot: int) -> set[int]:
        """Return the descriptor by which the worker of this slot reaches the farm process."""
        return set() if self.farm is None else {self.farm.pairs[slot][0].fileno()}

    def directories(self) -> set[int]:
        """Return the descriptors that it keeps until its caches are open."""
        files = (plan.file for plan in self.caches if plan.file is not None)
        return {file.directory for file in files} - {CLOSED}
