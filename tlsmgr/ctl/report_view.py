"""report_view - the report as lines for a person, or as one object for a program

The functions here are pure. The object is a contract: names are added to it, never changed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from tlsmgr.ctl.mail_log import LookupResult, Outcome
from tlsmgr.ctl.report_count import Counts, Tally

BAR = 20  # characters of a rate of 100 %
WIDTH = 79  # characters of a line of text
LONGEST_NAME = 50  # characters of a peer's name
TALLY_HEADINGS = ("CONNECTIONS", "RESUMED", "FULL", "UNKNOWN", "RATE")
LOG_LEVELS = {  # by program
    "smtp": "smtp_tls_loglevel",
    "lmtp": "lmtp_tls_loglevel",
    "smtpd": "smtpd_tls_loglevel",
    "tlsproxy": "tlsproxy_tls_loglevel",
}


class FileRead(NamedTuple):
    """A file of the log, how much of it was read, and why not all of it, if that is so."""

    name: str
    lines: int
    problem: str | None


def lines(counts: Counts, files: Sequence[FileRead], top: int) -> list[str]:
    """Return the lines of the report; of the peers of each service the `top` busiest, 0: all."""
    return [
        *_heading(counts, files),
        *(_tables(counts, top) if counts.services else ()),
        *(line for note in notes(counts) for line in ("", *textwrap.wrap(f"Note: {note}", WIDTH))),
    ]


def json_object(counts: Counts, files: Sequence[FileRead], top: int) -> dict[str, object]:
    """Return the report as the object that --json prints."""
    return {
        "files": [file._asdict() for file in files],
        "services": [
            {"service": service, **_values(tally), "cache": _lookup_values(counts, service)}
            for service, tally in counts.services.items()
        ],
        "hours": [
            {"hour": hour.isoformat(), "service": service, **_values(tally)}
            for (hour, service), tally in counts.hours.items()
        ],
        "versions": [
            {"service": service, "version": version, **_values(tally)}
            for (service, version), tally in counts.versions.items()
        ],
        "peers": [
            {"service": service, "peer": peer, **_values(tally)}
            for service in counts.services
            for peer, tally in _top(counts.peers(service), top)
        ],
        "notes": notes(counts),
    }


def notes(counts: Counts) -> list[str]:
    """Return the facts without which the figures would mislead."""
    if not counts.services:
        return [
            "there is no TLS connection in these logs. Postfix logs them if smtp_tls_loglevel "
            "and smtpd_tls_loglevel are 1 or more."
        ]
    found = (_level_note(service, tally) for service, tally in counts.services.items())
    return [note for note in found if note]


def _level_note(service: str, tally: Tally) -> str:
    unknown = tally[Outcome.UNKNOWN]
    if not unknown:
        return ""
    parameter = LOG_LEVELS[service.rpartition("/")[2]]
    if tally.rate is None:
        fact = f"{parameter} is below 2 in these logs: resumed sessions of {service} are not shown."
    else:
        fact = (
            f"{parameter} is below 2 in at least a part of these logs. They do not show the "
            f"outcome of {unknown:,} of {tally.handshakes:,} connections of {service}; the rate "
            "leaves these out."
        )
    return f"{fact} With {parameter} = 2 all are shown."


def _heading(counts: Counts, files: Sequence[FileRead]) -> Iterator[str]:
    hours = [hour for hour, _ in counts.hours]
    period = f", {_hour(hours[0])} to {hours[-1]:%Y-%m-%d %H}:59" if hours else ""
    yield f"TLS connections in the mail log{period}"
    read = [file for file in files if file.lines]
    total = sum(file.lines for file in read)
    yield f"{len(read):,} file{'s' * (len(read) != 1)}, {total:,} lines"


def _tables(counts: Counts, top: int) -> Iterator[str]:
    yield from _table(
        ("SERVICE", *TALLY_HEADINGS, "REUSED CONNECTIONS"),
        [
            (service, *_texts(tally), f"{tally[Outcome.REUSED_CONNECTION]:,}")
            for service, tally in counts.services.items()
        ],
        left=1,
    )
    yield from _table(
        ("SERVICE", "TLS VERSION", *TALLY_HEADINGS),
        [(*key, *_texts(tally)) for key, tally in counts.versions.items()],
        left=2,
    )
    for service in counts.services:
        yield from _peer_table(counts, service, top)
        yield from _hour_table(counts, service)
    for service in counts.lookups:
        yield from ("", *_lookup_lines(counts, service))


def _peer_table(counts: Counts, service: str, top: int) -> Iterator[str]:
    peers = counts.peers(service)
    shown = _top(peers, top)
    kind = "DESTINATION" if service.endswith(("/smtp", "/lmtp")) else "CLIENT"
    part = f" ({len(shown):,} of {len(peers):,})" if len(shown) < len(peers) else ""
    rows = [(_shortened(peer), *_texts(tally)) for peer, tally in shown]
    yield from _table((f"{kind} OF {service}{part}", *TALLY_HEADINGS), rows, left=1)


def _hour_table(counts: Counts, service: str) -> Iterator[str]:
    rows = [
        (_hour(hour), *_texts(tally), _bar(tally))
        for (hour, name), tally in counts.hours.items()
        if name == service
    ]
    yield from _table((f"HOUR OF {service}", *TALLY_HEADINGS, ""), rows, left=1)


def _lookup_lines(counts: Counts, service: str) -> Iterator[str]:
    found = counts.lookups[service]
    total, lost, elsewhere = found.total(), found[LookupResult.LOST], found[LookupResult.ELSEWHERE]
    hits = found[LookupResult.FOUND]
    yield (
        f"Session cache of {service}: {hits:,} of {total:,} lookups found a session "
        f"({_percent(hits / total)})."
    )
    for count, host in ((lost, "the same host"), (elsewhere, "another host")):
        if count:
            yield (
                f"Not found although {host} had saved that session less than an hour before: "
                f"{count:,} ({_percent(count / total)})."
            )


def _values(tally: Tally) -> dict[str, object]:
    return {
        "connections": tally.handshakes,
        "resumed": tally[Outcome.RESUMED],
        "full": tally[Outcome.FULL],
        "unknown": tally[Outcome.UNKNOWN],
        "rate": None if tally.rate is None else round(tally.rate, 4),
        "reused_connections": tally[Outcome.REUSED_CONNECTION],
    }


def _lookup_values(counts: Counts, service: str) -> dict[str, int] | None:
    """Return the lookups in the session cache; None if the log shows none."""
    if service not in counts.lookups:
        return None
    found = counts.lookups[service]
    return {"lookups": found.total(), **{each.name.lower(): found[each] for each in LookupResult}}


def _top(peers: Mapping[str, Tally], top: int) -> list[tuple[str, Tally]]:
    return list(peers.items())[: top or None]


def _texts(tally: Tally) -> tuple[str, ...]:
    """Return the texts under TALLY_HEADINGS."""
    outcomes = (Outcome.RESUMED, Outcome.FULL, Outcome.UNKNOWN)
    counted = (f"{tally[outcome]:,}" for outcome in outcomes)
    return (f"{tally.handshakes:,}", *counted, "-" if tally.rate is None else _percent(tally.rate))


def _bar(tally: Tally) -> str:
    return "" if tally.rate is None else "#" * round(BAR * tally.rate)


def _hour(hour: datetime) -> str:
    return f"{hour:%Y-%m-%d %H:%M}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Yield an empty line and the table. Bars and the first `left` columns are left-aligned."""
    widths = [max(map(len, column)) for column in zip(headings, *rows)]
    yield ""
    for row in (headings, *rows):
        cells = [
            text.ljust(width) if place < left or set(text) <= {"#"} else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths))
        ]
        yield "  ".join(cells).rstrip()
