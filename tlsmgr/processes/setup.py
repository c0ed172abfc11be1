"""boot - what a process does before it can handle requests: close, attach, open the caches.

For each worker right after its fork, and for the parent under -S. A cache that can't be opened is a
warning, a cache that answers "not found", and a word to the parent, which makes the file anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

from tlsmgr import log
from tlsmgr.processes.inherited import CachePlan, Inherited
from tlsmgr.service import CacheType, Context
from tlsmgr.sessions.cache import SessionCache
from tlsmgr.sessions.store import Store, StoreError

PR_SET_NAME = 15  # prctl(2)


def make_context(inherited: Inherited, slot: int) -> Context:
    """Open the caches; what requests are handled with, for the process of this slot."""
    inherited.pool.attach(slot)
    inherited.ticket_keys.attach(slot)
    caches = {plan.rules.cache_type.encode(): _open_cache(plan) for plan in inherited.caches}
    return Context(
        {name: CacheType(t, caches.get(name)) for name, t in inherited.timeouts.items()},
        tuple(caches.values()),
        inherited.ticket_keys,
        inherited.pool,
        inherited.stats.row(slot),
    )


def name_process(name: str) -> None:
    """What ps(1) and top(1) call this process beside its command line, 15 bytes at most."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor from 3 on that is not in the set."""
    start = 3
    for descriptor in sorted(d for d in kept if d >= start):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _open_cache(plan: CachePlan) -> SessionCache:
    store = None
    if plan.file is not None:
        try:
            store = Store(plan.file)
        except StoreError as error:
            log.warning(f"{plan.rules.cache_type} TLS session cache: {error}")
            plan.shared.report_damage()
    return SessionCache(plan.rules, plan.shared, store)
