"""report_count - counts of TLS connections by hour, service, TLS version and peer

A peer is the destination of smtp(8) and lmtp(8), and the client of smtpd(8). There can be as many
as a busy server has clients: when a service has PEERS of them, all further ones are counted
together under OTHER_PEERS, so that the memory is bounded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import NamedTuple, TypeVar

from tlsmgr.ctl.mail_log import LookupResult, Outcome, TlsConnection

PEERS = 100_000  # of a service
OTHER_PEERS = "(other peers)"


class Tally:
    """Connections by their outcome."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = [0] * len(Outcome)

    def add(self, outcome: Outcome, count: int = 1) -> None:
        """Count connections."""
        self._counts[outcome] += count

    def __getitem__(self, outcome: Outcome) -> int:
        return self._counts[outcome]

    @property
    def handshakes(self) -> int:
        """All connections but those that took another message without a handshake."""
        return sum(self._counts) - self._counts[Outcome.REUSED_CONNECTION]

    @property
    def rate(self) -> float | None:
        """Resumed handshakes of those whose outcome is known, 0 to 1; None if there are none."""
        resumed = self._counts[Outcome.RESUMED]
        known = resumed + self._counts[Outcome.FULL]
        return resumed / known if known else None


class Cell(NamedTuple):
    """The smallest part of the report that is counted apart, but for peers."""

    hour: datetime
    service: str
    version: str
    outcome: Outcome


_Key = TypeVar("_Key")


class Counts:
    """All that a report shows."""

    def __init__(self) -> None:
        self._cells: Counter[Cell] = Counter()
        self._peers: dict[str, dict[str, Tally]] = defaultdict(dict)
        self.lookups: dict[str, Counter[LookupResult]] = defaultdict(Counter)

    def add(self, connections: Iterable[TlsConnection]) -> None:
        """Count them all."""
        for hour, service, peer, version, outcome, lookup in connections:
            self._cells[Cell(hour, service, version, outcome)] += 1
            peers = self._peers[service]
            if peer not in peers:
                if len(peers) >= PEERS:
                    peer = OTHER_PEERS
                peers.setdefault(peer, Tally())
            peers[peer].add(outcome)
            if lookup is not None:
                self.lookups[service][lookup] += 1

    @property
    def services(self) -> Mapping[str, Tally]:
        """By service, the one with most connections first."""
        return _busiest(self._by(lambda cell: cell.service))

    @property
    def hours(self) -> Mapping[tuple[datetime, str], Tally]:
        """By hour and service, in their order."""
        return dict(sorted(self._by(lambda cell: (cell.hour, cell.service)).items()))

    @property
    def versions(self) -> Mapping[tuple[str, str], Tally]:
        """By service and TLS version, in their order."""
        return dict(sorted(self._by(lambda cell: (cell.service, cell.version)).items()))

    def peers(self, service: str) -> Mapping[str, Tally]:
        """Return those of a service, the one with most connections first."""
        return _busiest(self._peers[service])

    def _by(self, key: Callable[[Cell], _Key]) -> dict[_Key, Tally]:
        tallies: dict[_Key, Tally] = defaultdict(Tally)
        for cell, count in self._cells.items():
            tallies[key(cell)].add(cell.outcome, count)
        return tallies


def _busiest(tallies: Mapping[str, Tally]) -> dict[str, Tally]:
    def order(item: tuple[str, Tally]) -> tuple[int, str]:
        return -item[1].handshakes, item[0]

    return dict(sorted(tallies.items(), key=order))
