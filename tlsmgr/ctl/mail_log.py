"""mail_log - find the TLS connections in the lines of a mail log

Postfix logs a summary line per TLS handshake at TLS log level 1. It logs "Reusing old session" at
level 2 only. A summary line still shows resumption for TLS 1.3 with the usual keys: a full
handshake has a server signature with a digest, and a resumed one has not. Postfix 3.7.11 logs the
signature without its digest then; releases since February 2025 log neither. With TLS 1.2 and with
Ed25519 keys the summary does not show it, so that the outcome is UNKNOWN unless level 2 is there.

At level 2 a handshake starts with "setting up TLS connection", which proves the level.

With smtp_tls_connection_reuse, tlsproxy(8) and smtp(8) both log the same summary. The line of
smtp(8) counts; only tlsproxy(8) knows the outcome, which waits for that line.

Everything here is pure: lines in, connections out. Lines of other programs are skipped, and so are
lines that only quote such a text, since a remote server can choose what smtp(8) logs as its reply.
The memory is bounded: unfinished handshakes and saved sessions are dropped, oldest first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, TypeVar

LOST_WITHIN = 3600  # seconds: stock keeps a session this long unless configured otherwise
REMEMBERED = 100_000  # entries of each table
WAITING = 100  # handshakes of tlsproxy(8) with the same summary
YEARS_BACK = 8  # February 29 may be that far away
SLACK = timedelta(days=1)  # how far a line may be ahead of its file's time

_LINE = re.compile(
    rb"([A-Z][a-z]{2} [ \d]\d \d\d:\d\d|\d{4}-\d\d-\d\dT\d\d:\d\d):(\d\d)(?:\.\d+)?"
    rb"(Z|[+-]\d\d:?\d\d)? "  # the zone, in ISO time stamps
    rb"((\S+) (\S+/(?:smtpd?|lmtp|tlsproxy))\[\d+)\]: (.*)",  # process: host, program, id
    re.DOTALL,
)
_SUMMARY = re.compile(
    rb"\w+ TLS connection (established|reused) (to|from) (\S*?\[[^\]\s]*\](?::\d+)?)"
    rb"(?: to \S+)?: (\S+) with cipher (.*)",
    re.DOTALL,
)
_KEYS_WITH_DIGEST = re.compile(rb" server-signature (?:RSA-PSS|ECDSA)")
_MONTHS = {
    name: number
    for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}


class Outcome(IntEnum):
    """How a TLS connection came about."""

    FULL = 0
    RESUMED = 1
    UNKNOWN = 2  # the log does not show it
    REUSED_CONNECTION = 3  # another message in an open connection, no handshake


class LookupResult(IntEnum):
    """The result of a lookup in the session cache before a handshake as a client."""

    FOUND = 0
    MISSED = 1
    LOST = 2  # missed; the same host saved that session less than LOST_WITHIN before
    ELSEWHERE = 3  # missed; another host saved it less than LOST_WITHIN before


class TlsConnection(NamedTuple):
    """A TLS connection as the log shows it. The texts have printable characters only."""

    hour: datetime
    service: str
    peer: str
    version: str
    outcome: Outcome
    lookup: LookupResult | None


class Clock:
    """Time stamps of one file as local time.

    Traditional time stamps have no year: they get the latest one with which they are not after
    `newest`, for example the time at which the file was last written.
    """

    def __init__(self, newest: datetime) -> None:
        self._latest = newest.astimezone() + SLACK
        self._minutes: dict[tuple[bytes, bytes | None], tuple[datetime, int] | None] = {}

    def minute(self, stamp: bytes, zone: bytes | None) -> tuple[datetime, int] | None:
        """Return the hour and the seconds since the epoch; None if there is no such minute."""
        key = stamp, zone
        if key not in self._minutes:
            if len(self._minutes) >= REMEMBERED:
                self._minutes.clear()
            try:
                time = self._iso(stamp, zone) if stamp[:1].isdigit() else self._traditional(stamp)
                hour = time.replace(minute=0, second=0)
                self._minutes[key] = hour, int(time.timestamp())
            except (ValueError, OverflowError, KeyError):
                self._minutes[key] = None
        return self._minutes[key]

    @staticmethod
    def _iso(stamp: bytes, zone: bytes | None) -> datetime:
        time = datetime.fromisoformat(stamp.decode())
        if zone == b"Z":
            time = time.replace(tzinfo=timezone.utc)
        elif zone is not None:
            offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
            time = time.replace(tzinfo=timezone(-offset if zone[:1] == b"-" else offset))
        return time.astimezone()

    def _traditional(self, stamp: bytes) -> datetime:
        month, day = _MONTHS[stamp[:3]], int(stamp[4:6])
        hour, minute = int(stamp[7:9]), int(stamp[10:12])
        for year in range(self._latest.year, self._latest.year - YEARS_BACK - 1, -1):
            try:
                time = datetime(year, month, day, hour, minute).astimezone()
            except ValueError:  # February 29
                continue
            if time <= self._latest:
                return time
        raise ValueError(stamp)


@dataclass(slots=True)
class _Handshake:
    """A handshake that began at log level 2."""

    resumed: bool = False
    session: bytes = b""  # its id in the cache, once it was looked up
    lookup: LookupResult | None = None


class _Summary(NamedTuple):
    """A summary line's text, taken apart."""

    established: bool  # by a handshake; else an open connection was reused
    client: bool  # Postfix was the client
    address: bytes  # of the peer, as other lines have it
    peer: str
    version: str
    outcome: Outcome  # as far as this text shows it


class _Line(NamedTuple):
    """The parts of a line that are of use."""

    hour: datetime
    time: int  # seconds since the epoch
    host: bytes
    program: bytes
    process: bytes  # unique among the hosts
    text: bytes


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _remember(table: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Put it at the end of the table; drop the oldest half of a full table."""
    table.pop(key, None)
    if len(table) >= REMEMBERED:
        for old in list(table)[: REMEMBERED // 2]:
            del table[old]
    table[key] = value


class MailLog:
    """Finds connections, in the files of a log from the oldest to the newest."""

    def __init__(self) -> None:
        self._open: dict[tuple[bytes, bytes], _Handshake] = {}  # by process and peer
        self._latest: dict[bytes, _Handshake] = {}  # the one that a process began last
        self._proxied: dict[bytes, list[_Handshake]] = {}  # tlsproxy's, by summary
        self._saved: dict[bytes, tuple[int, bytes]] = {}  # time and host, by id
        self._handlers: dict[bytes, Callable[[_Line], None]] = {
            b"setting": self._setting_up,
            b"looking": self._looking,
            b"reloaded": self._reloaded,
            b"save": self._save,
            b"remove": self._remove,
        }

    def connections(self, lines: Iterable[bytes], clock: Clock) -> Iterator[TlsConnection]:
        """Yield the connections in these lines."""
        for raw in lines:
            if b"TLS connection " not in raw and b" session" not in raw:
                continue
            if (line := _parse(raw, clock)) is None:
                continue
            if b"TLS connection " in line.text and (summary := _summary(line.text)) is not None:
                if (connection := self._connection(line, summary)) is not None:
                    yield connection
            else:
                self._handlers.get(line.text.partition(b" ")[0], self._reusing)(line)

    def _connection(self, line: _Line, summary: _Summary) -> TlsConnection | None:
        """Return the connection of a summary line; None if the line of smtp(8) will count."""
        handshake = self._open.pop((line.process, summary.address), None)
        if summary.client and summary.established:
            if line.program.endswith(b"/tlsproxy"):
                if handshake is not None:
                    self._hand_on(line.text, handshake)
                return None
            if handshake is None:
                handshake = self._proxied_handshake(line.text)
        outcome, lookup = summary.outcome, None
        if handshake is not None:
            lookup = handshake.lookup
            if handshake.resumed:
                outcome = Outcome.RESUMED
            elif outcome is Outcome.UNKNOWN:
                outcome = Outcome.FULL
        service = _text(line.program)
        return TlsConnection(line.hour, service, summary.peer, summary.version, outcome, lookup)

    def _hand_on(self, text: bytes, handshake: _Handshake) -> None:
        waiting = self._proxied.get(text, [])
        _remember(self._proxied, text, [*waiting[-WAITING:], handshake])

    def _proxied_handshake(self, text: bytes) -> _Handshake | None:
        waiting = self._proxied.pop(text, None)
        if waiting is None:
            return None
        if len(waiting) > 1:
            self._proxied[text] = waiting[1:]
        return waiting[0]

    def _setting_up(self, line: _Line) -> None:
        peer = line.text.rpartition(b" ")[2]
        handshake = _Handshake()
        _remember(self._open, (line.process, peer), handshake)
        _remember(self._latest, line.process, handshake)

    def _reusing(self, line: _Line) -> None:
        peer, found, _ = line.text.partition(b": Reusing old session")
        if not found:
            return
        key = line.process, peer
        if key not in self._open:
            _remember(self._open, key, _Handshake())
        self._open[key].resumed = True

    def _looking(self, line: _Line) -> None:
        """A lookup comes right after its handshake began, in tlsproxy(8) too."""
        session, handshake = _session(line.text), self._latest.get(line.process)
        if handshake is None or not session:
            return
        handshake.session = session
        handshake.lookup = LookupResult.MISSED
        time, host = self._saved.get(session, (0, b""))
        if 0 <= line.time - time < LOST_WITHIN:
            handshake.lookup = LookupResult.LOST if host == line.host else LookupResult.ELSEWHERE

    def _reloaded(self, line: _Line) -> None:
        handshake = self._latest.get(line.process)
        if handshake is not None and handshake.session == _session(line.text):
            handshake.lookup = LookupResult.FOUND

    def _save(self, line: _Line) -> None:
        _remember(self._saved, _session(line.text), (line.time, line.host))

    def _remove(self, line: _Line) -> None:
        self._saved.pop(_session(line.text), None)


def _parse(raw: bytes, clock: Clock) -> _Line | None:
    """Return the parts of a line of smtp(8), lmtp(8), smtpd(8) or tlsproxy(8); None for others."""
    if (match := _LINE.match(raw)) is None:
        return None
    stamp, second, zone, process, host, program, text = match.groups()
    if (minute := clock.minute(stamp, zone)) is None:
        return None
    return _Line(minute[0], minute[1] + int(second), host, program, process, text.rstrip())


@lru_cache(maxsize=1 << 14)  # most texts come again: saves a quarter of the time
def _summary(text: bytes) -> _Summary | None:
    """Return the parts of the text; None if it is no summary."""
    if (match := _SUMMARY.match(text)) is None:
        return None
    usage, direction, address, version, details = match.groups()
    established = usage == b"established"
    outcome = _outcome(version, details) if established else Outcome.REUSED_CONNECTION
    return _Summary(
        established, direction == b"to", address, _peer_name(address), _text(version), outcome
    )


def _outcome(version: bytes, details: bytes) -> Outcome:
    """Return the outcome of a handshake as far as its summary shows it."""
    if version == b"TLSv1.3":
        if b" server-digest " in details:
            return Outcome.FULL
        if _KEYS_WITH_DIGEST.search(details):
            return Outcome.RESUMED
        if b" key-exchange " in details and b" server-signature " not in details:
            return Outcome.RESUMED
    return Outcome.UNKNOWN


def _session(text: bytes) -> bytes:
    """Return the cache id in `looking for session ID in ...` and its like."""
    return text.partition(b" session ")[2].partition(b" ")[0]


def _peer_name(peer: bytes) -> str:
    """Return the host's name, or its address in brackets if it has none."""
    name, _, rest = peer.partition(b"[")
    address = rest.partition(b"]")[0]
    return _text(b"[" + address + b"]" if name in (b"", b"unknown", address) else name.lower())


@lru_cache(maxsize=1 << 8)
def _text(raw: bytes) -> str:
    """Return printable text: names in a log come from strangers."""
    text = raw.decode("ascii", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
