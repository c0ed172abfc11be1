"""succession - what a daemon leaves to the one after it, and what that one takes.

At a reload the parent calls ``leave`` when no worker accepts any more. When it was killed, each
worker does so, once it accepts no more itself; the first message counts. At its start the successor
calls ``receive``, before it forks: that logs what was found, or why there is nothing, and returns
the clients that it met on the way. ``apply`` puts the found into the new daemon's shared memory.

The PRNG pool never goes over. Whoever may connect to the socket may ask for every ticket key, so a
message counts only from root and from the user that the daemon becomes, and no key in it is used
for new sessions or for longer than one made now.

Whatever fails, the start goes on with new keys, after one line in the log. Nothing is fatal.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from socket import socket

from tlsmgr import log
from tlsmgr.config import policy_digest
from tlsmgr.prng.pool import EntropyError
from tlsmgr.processes import bridge, handover, parking
from tlsmgr.processes.bridge import Met
from tlsmgr.processes.handover import BadMessage, CacheMessage, Message, OtherLayout
from tlsmgr.processes.inherited import CachePlan, Inherited
from tlsmgr.processes.parking import MOST_CONNECTIONS, NO_BRIDGE, Parked
from tlsmgr.sessions.file import map_size_for

ROOT = 0
KEY_TIME = 20  # seconds for which a ticket key must last; a drain is shorter
MOST_NAMES = 3  # of changed parameters in a log line
MOST_REASONS = 10  # lines about refused messages at a start


@dataclass
class Arrivals:
    """What waited at the socket: a message or None, connections of clients, the end of a bridge."""

    message: Message | None = None
    clients: list[int] = field(default_factory=list)
    bridge: int = NO_BRIDGE
    refused: bool = False  # a message was there, and why it is not used is in the log

    def end_bridge(self, patience: float = 0.0) -> None:
        """Have the old workers accept no more; wait so many seconds for that."""
        if self.bridge != NO_BRIDGE:
            bridge.end(self.bridge, patience)
            self.bridge = NO_BRIDGE


def prepare(inherited: Inherited, now: int) -> None:
    """Have a ticket key that old workers and the successor can share; before workers drain."""
    try:
        inherited.ticket_keys.provide(now, KEY_TIME)
    except EntropyError as error:
        log.warning(f"no random bytes for a ticket key: {error}")


def leave(inherited: Inherited, address: str, bridge_end: int, parent: int, now: int) -> None:
    """Leave a message and the end of a bridge to the successor, at our listening socket's address.

    A failure is a warning, and it starts with new keys. Nobody listens: there is no successor.
    """
    message = Message(
        parent=parent,
        time=now,
        ticket_keys=inherited.ticket_keys.dump(),
        statistics=inherited.stats.dump(_names(inherited)),
        caches={
            plan.rules.cache_type: CacheMessage(
                plan.table, plan.rules.size_limit, plan.shared.dump(now)
            )
            for plan in inherited.caches
        },
        policy=inherited.policy,
    )
    try:
        memory = handover.write(message)
        try:
            parking.park(address, memory, bridge_end)
        finally:
            os.close(memory)
    except BlockingIOError:
        _warn_of_failure("too many clients wait at the socket")
    except ConnectionRefusedError:
        pass
    except (OSError, TypeError) as error:  # TypeError: the address of another kind of socket
        _warn_of_failure(getattr(error, "strerror", None) or "not a UNIX-domain socket")


def _names(inherited: Inherited) -> list[str]:
    """Return the types of the caches, in their order."""
    return [plan.rules.cache_type for plan in inherited.caches]


def _warn_of_failure(reason: str) -> None:
    log.warning(f"cannot hand over sessions and ticket keys: {reason}; the next start has new keys")


def receive(
    listeners: Sequence[socket], owner: int, wanted: bool, now: int, early: Met | None = None
) -> Arrivals:
    """Return the message that a predecessor left, and the clients that wait before it.

    ``owner`` is the user that may leave one, beside root; unless it is ``wanted``, it is dropped.
    ``early`` is what the bootstrap has met. Of several messages the first good one counts, of as
    many as a backlog may hold: who leaves more and more of them must not hold up the start.
    """
    found = Arrivals()
    met = early or _meet(listeners)
    found.clients += met.clients
    if early is not None and met.parked is None:  # a worker of a killed parent may be late
        met = _meet(listeners)
        found.clients += met.clients
    dropped = 0
    while met.parked is not None and dropped + len(found.clients) < MOST_CONNECTIONS:
        try:
            found.message = _read(met.parked, (ROOT, owner), now) if wanted else None
        except BadMessage as error:
            if dropped < MOST_REASONS:
                _refuse(met.parked, error)
            found.refused = True
        if found.message is not None:
            os.close(met.parked.message)
            found.bridge = met.parked.bridge
            return found
        met.parked.close()
        dropped += 1
        met = _meet(listeners)
        found.clients += met.clients
    if met.parked is not None:
        met.parked.close()
    if not found.refused:
        reason = "nothing was handed over" if wanted else "tlsmgr_handover is off"
        log.info(f"starting with new keys: {reason}")
    return found


def _meet(listeners: Sequence[socket]) -> Met:
    """Return what waits at the first socket, which is the one that messages come to."""
    return bridge.meet(listeners[0].fileno()) if listeners else Met(None, [])


def _read(parked: Parked, owners: Collection[int], now: int) -> Message:
    if parked.uid not in owners:
        raise BadMessage(f"it is from user {parked.uid}")
    return handover.read(parked.message, now)


def _refuse(parked: Parked, error: BadMessage) -> None:
    if isinstance(error, OtherLayout):
        log.info(f"starting with new keys: hand-over from process {parked.pid}: {error}")
    else:
        log.warning(f"starting with new keys: hand-over from process {parked.pid} refused: {error}")


def apply(inherited: Inherited, message: Message, now: int) -> None:
    """Take over what the message holds, before the first fork, and log what that is."""
    changed = policy_digest.changes(message.policy, inherited.policy)
    if not changed:
        inherited.ticket_keys.restore(message.ticket_keys, now)
    inherited.stats.restore(message.statistics, _names(inherited))
    name = inherited.ticket_keys.name_of_current(now)
    taken = [f"session ticket key {name}" if name else "no session ticket key"]
    for plan in inherited.caches:
        cache = message.caches.get(plan.rules.cache_type)
        if changed and plan.rules.cache_type == "smtpd":
            continue
        if cache is not None and cache.state.mark.inode and _is_usable(plan, cache):
            plan.shared.inherit(cache.state, plan.rules.timeout, now)
            taken.append(f"{plan.rules.cache_type} cache")
    log.info(f"took over from process {message.parent}: {', '.join(taken)}")
    if changed:
        text = "smtpd sessions and ticket keys are not taken over"
        log.info(f"{text}: {_listed(changed)} changed")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _is_usable(plan: CachePlan, cache: CacheMessage) -> bool:
    """Return whether the file of that cache suits the configuration of now."""
    length = map_size_for(plan.rules.size_limit)
    reasons = {
        "its database was changed": cache.table != plan.table,
        "tlsmgr_session_encryption was changed": cache.state.encrypted != plan.shared.encrypted,
        "its size limit was raised": length
        > max(map_size_for(cache.size_limit), cache.state.mark.size),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), "")
    if reason:
        log.info(f"{plan.rules.cache_type} TLS session cache starts empty: {reason}")
    return not reason
