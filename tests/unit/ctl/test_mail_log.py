"""mail_log: the TLS connections in the lines of a log, and nothing else that is in it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone

import pytest
from support.tls_log_lines import (
    FULL,
    MX,
    RESUMED,
    SESSION,
    SIGNED,
    TLS_1_2,
    TLS_1_3,
    line,
    smtp,
    smtp_level_2,
    smtpd,
)

from tlsmgr.ctl import mail_log
from tlsmgr.ctl.mail_log import Clock, LookupResult, MailLog, Outcome, TlsConnection

NEWEST = datetime(2026, 11, 22, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is an hour ahead of UTC in winter."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def found(lines: Iterable[str], newest: datetime = NEWEST) -> list[TlsConnection]:
    return list(MailLog().connections((each.encode() for each in lines), Clock(newest)))


def outcomes(lines: Iterable[str]) -> list[Outcome]:
    return [connection.outcome for connection in found(lines)]


def lookups(lines: Iterable[str]) -> list[LookupResult | None]:
    return [connection.lookup for connection in found(lines)]


def hours(*stamps: str, newest: datetime = NEWEST) -> list[str]:
    lines = (smtp(FULL, stamp=stamp) for stamp in stamps)
    return [connection.hour.isoformat() for connection in found(lines, newest)]


def test_a_connection_has_all_its_parts() -> None:
    (connection,) = found([smtp(FULL)])
    assert connection.hour.isoformat() == "2026-11-21T00:00:00+01:00"
    assert connection[1:] == ("postfix/smtp", "mx.example.org", "TLSv1.3", Outcome.FULL, None)


@pytest.mark.parametrize(
    ("details", "outcome"),
    [
        (FULL, Outcome.FULL),
        (RESUMED, Outcome.RESUMED),
        (f"{TLS_1_3} server-signature RSA-PSS (2048 bits) server-digest SHA256", Outcome.FULL),
        (f"{TLS_1_3} server-signature RSA-PSS (2048 bits)", Outcome.RESUMED),
        (f"{FULL} client-signature ECDSA (prime256v1) client-digest SHA256", Outcome.FULL),
        (f"{TLS_1_3} server-signature ECDSA (raw public key) server-digest SHA256", Outcome.FULL),
        (TLS_1_3, Outcome.RESUMED),  # releases since February 2025
        (f"{TLS_1_3} server-signature ED25519", Outcome.UNKNOWN),  # a key without a digest
        (TLS_1_3.partition(" key-exchange")[0], Outcome.UNKNOWN),  # Postfix before 3.4
        (TLS_1_2, Outcome.UNKNOWN),
    ],
)
def test_level_1_shows_resumption_for_tls_1_3_only(details: str, outcome: Outcome) -> None:
    assert outcomes([smtp(details)]) == [outcome]
    assert outcomes(smtpd(details)) == [outcome]


@pytest.mark.parametrize("details", [TLS_1_2, f"{TLS_1_3} server-signature ED25519"])
@pytest.mark.parametrize("resumed", [False, True])
def test_level_2_shows_resumption_for_all(details: str, resumed: bool) -> None:
    outcome = Outcome.RESUMED if resumed else Outcome.FULL
    assert outcomes(smtp_level_2(details, resumed)) == [outcome]
    assert outcomes(smtpd(details, resumed)) == [outcome]


def test_handshakes_of_several_processes_may_be_mixed() -> None:
    one = smtp_level_2(TLS_1_2, True)
    two = smtp_level_2(TLS_1_2, False, program="postfix/smtp[101]")
    three = smtpd(TLS_1_2, True, program="postfix/submission/smtpd[100]")
    mixed = [each for lines in zip(one, [*two, "", ""], [*three, *[""] * 5]) for each in lines]
    assert sorted((c.service, c.outcome) for c in found(mixed)) == [
        ("postfix/smtp", Outcome.FULL),
        ("postfix/smtp", Outcome.RESUMED),
        ("postfix/submission/smtpd", Outcome.RESUMED),
    ]


def test_a_failed_handshake_leaves_nothing_to_the_next() -> None:
    """The session was resumed, and then the server hung up."""
    failed = smtp_level_2(TLS_1_2, True)[:-1]
    assert outcomes([*failed, *smtp_level_2(TLS_1_2, False)]) == [Outcome.FULL]


def test_the_start_of_a_handshake_may_be_missing() -> None:
    """The log begins in the middle of a handshake."""
    assert outcomes(smtp_level_2(TLS_1_2, True)[5:]) == [Outcome.RESUMED]
    assert outcomes(smtp_level_2(TLS_1_2, False)[5:]) == [Outcome.UNKNOWN]


def test_a_lost_line_does_not_hide_what_the_summary_shows() -> None:
    """A system log may drop lines of a busy program: here the one on reuse."""
    lines = [each for each in smtp_level_2(RESUMED, True) if "Reusing" not in each]
    assert outcomes(lines) == [Outcome.RESUMED]


# tlsproxy(8)


@pytest.mark.parametrize(
    ("details", "resumed", "outcome"),
    [(TLS_1_2, True, Outcome.RESUMED), (TLS_1_2, False, Outcome.FULL), (FULL, False, Outcome.FULL)],
)
def test_a_connection_by_tlsproxy_counts_once(
    details: str, resumed: bool, outcome: Outcome
) -> None:
    lines = [*smtp_level_2(details, resumed, program="postfix/tlsproxy[300]"), smtp(details)]
    (connection,) = found(lines)
    assert (connection.service, connection.outcome) == ("postfix/smtp", outcome)
    assert connection.lookup == (LookupResult.FOUND if resumed else LookupResult.MISSED)


def test_connections_by_tlsproxy_with_equal_summaries() -> None:
    """Each summary of smtp(8) takes one of those of tlsproxy(8), the oldest first."""
    proxy = "postfix/tlsproxy[300]"
    first, second = (smtp_level_2(TLS_1_2, resumed, program=proxy) for resumed in (True, False))
    lines = [*first, *second, smtp(TLS_1_2), smtp(TLS_1_2), smtp(TLS_1_2)]
    assert outcomes(lines) == [Outcome.RESUMED, Outcome.FULL, Outcome.UNKNOWN]


def test_a_connection_by_tlsproxy_at_level_1() -> None:
    assert outcomes([smtp(RESUMED, program="postfix/tlsproxy[300]"), smtp(RESUMED)]) == [
        Outcome.RESUMED
    ]


def test_tlsproxy_takes_connections_for_postscreen() -> None:
    text = f"Anonymous TLS connection established from [198.51.100.7]:4711: {FULL}"
    (connection,) = found([line(text, "postfix/tlsproxy[300]")])
    assert (connection.service, connection.peer) == ("postfix/tlsproxy", "[198.51.100.7]")
    assert connection.outcome == Outcome.FULL


def test_a_reused_connection_has_no_handshake() -> None:
    text = f"Untrusted TLS connection reused to {MX}: {SIGNED}"
    assert outcomes([line(text)]) == [Outcome.REUSED_CONNECTION]


# Lines that are no connection


@pytest.mark.parametrize(
    "other",
    [
        line(f"4X0Q7k: to=<a@example.org>, status=deferred (host {MX} said: 450 {smtp(FULL)})"),
        line(f"warning: Untrusted TLS connection established to {MX}: {FULL}"),
        line(f"Untrusted TLS connection established to {MX}: {FULL}", "imapd[7]"),
        line(f"Untrusted TLS connection established to {MX}: {FULL}", "postfix/qmgr[7]"),
        line(f"Untrusted TLS connection established to {MX}"),
        line("Untrusted TLS connection established to nobody: TLSv1.3 with cipher X"),
        line("looking for session"),
        line("reloaded session x from smtp cache"),
        f"x{smtp(FULL)}",
        smtp(FULL, stamp="Nov 31 00:30:05"),
        smtp(FULL, stamp="Nix 21 00:30:05"),
        smtp(FULL, stamp="2026-11-21T25:30:05"),
        smtp(FULL, stamp="2026-13-21T00:30:05+01:00"),
        smtp(FULL, stamp="2026-11-21T00:30:05+99:00"),
        "",
    ],
)
def test_other_lines_are_skipped(other: str) -> None:
    assert found([other]) == []


def test_any_bytes_are_skipped() -> None:
    lines = [bytes(range(256)) * 5, b" session \xff\x00", b"TLS connection \xff", b"\r"]
    assert list(MailLog().connections(lines, Clock(NEWEST))) == []


# Peers


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("MX.example.org[192.0.2.1]:25", "mx.example.org"),
        ("mx.example.org[2001:db8::1]:25", "mx.example.org"),
        ("unknown[192.0.2.1]", "[192.0.2.1]"),
        ("192.0.2.1[192.0.2.1]:25", "[192.0.2.1]"),
        ("[2001:db8::1]:4711", "[2001:db8::1]"),
        ("mail.example.org[private/lmtp]", "mail.example.org"),
        ("\x1bred.example.org[192.0.2.1]:25", "\\x1bred.example.org"),
        ("m\u00fcll\u202e.example.org[192.0.2.1]", "m\\xc3\\xbcll\\xe2\\x80\\xae.example.org"),
    ],
)
def test_a_peer_has_a_printable_name(peer: str, name: str) -> None:
    (connection,) = found([smtp(FULL, peer=peer)])
    assert connection.peer.isprintable()
    assert connection.peer == name


def test_a_server_name_does_not_hide_the_client() -> None:
    """With SNI the summary of smtpd(8) names it after the client."""
    peer = "client.example.net[198.51.100.7] to mail.example.org"
    (connection,) = found([line(f"Trusted TLS connection established from {peer}: {FULL}")])
    assert connection.peer == "client.example.net"


# Time


def test_time_stamps_of_all_kinds() -> None:
    stamps = [
        "Nov  1 00:30:05",  # syslogd
        "Nov 01 00:30:05",  # postlogd
        "2026-11-01T00:30:05",
        "2026-11-01T00:30:05.123456+01:00",  # rsyslogd of Debian 12
        "2026-10-31T23:30:05.123Z",
        "2026-10-31T19:30:05-0400",  # journalctl -o short-iso
        "2026-11-01T05:15:05+05:45",
    ]
    assert set(hours(*stamps)) == {"2026-11-01T00:00:00+01:00"}
    assert len(hours(*stamps)) == len(stamps)


def test_the_year_changes_between_lines() -> None:
    newest = datetime(2027, 1, 1, 3, tzinfo=timezone.utc)
    assert hours("Dec 31 23:59:59", "Jan  1 00:00:00", newest=newest) == [
        "2026-12-31T23:00:00+01:00",
        "2027-01-01T00:00:00+01:00",
    ]


def test_a_line_may_be_a_little_ahead_of_its_file() -> None:
    newest = datetime(2026, 12, 31, 22, tzinfo=timezone.utc)
    assert hours("Jan  1 00:00:01", newest=newest) == ["2027-01-01T00:00:00+01:00"]


def test_february_29() -> None:
    assert hours("Feb 29 12:00:00") == ["2024-02-29T12:00:00+01:00"]


def test_hours_follow_daylight_saving_time() -> None:
    assert hours("2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "Jul  1 12:00:00") == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-07-01T12:00:00+02:00",
    ]


# Lookups in the session cache


def later(resumed: bool, minutes: int, host: str = "mail") -> list[str]:
    """Return the lines of a handshake that long after the full hour."""
    stamp = f"2026-11-21T{minutes // 60:02}:{minutes % 60:02}:00"
    lines = smtp_level_2(FULL, resumed, stamp=stamp)
    return [each.replace(" mail ", f" {host} ") for each in lines]


def test_a_lookup_that_finds_a_session() -> None:
    assert lookups([*later(False, 0), *later(True, 59)]) == [
        LookupResult.MISSED,
        LookupResult.FOUND,
    ]


def test_a_session_that_was_saved_less_than_an_hour_before() -> None:
    assert lookups([*later(False, 0), *later(False, 59)]) == [
        LookupResult.MISSED,
        LookupResult.LOST,
    ]
    assert lookups([*later(False, 0), *later(False, 60)]) == [
        LookupResult.MISSED,
        LookupResult.MISSED,
    ]


def test_a_session_that_another_host_saved() -> None:
    lines = [*later(False, 0), *later(False, 30, host="other")]
    assert lookups(lines) == [LookupResult.MISSED, LookupResult.ELSEWHERE]


def test_a_session_that_was_removed() -> None:
    removed = line(f"remove session {SESSION} from client cache")
    assert lookups([*later(False, 0), removed, *later(False, 1)]) == [LookupResult.MISSED] * 2


def test_no_lookup_without_a_cache() -> None:
    lines = [each for each in smtp_level_2(FULL, False) if " session " not in each]
    assert lookups(lines) == [None]


# Memory


def test_unfinished_entries_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes that fail, sessions that nobody asks for, summaries that no smtp(8) takes."""
    monkeypatch.setattr(mail_log, "REMEMBERED", 100)
    log = MailLog()
    for number in range(1000):
        lines = smtp_level_2(
            f"{TLS_1_2} {number}", False, f"postfix/tlsproxy[{number}]", session=f"id{number}"
        )
        begun = [*lines, line(f"setting up TLS connection to {MX}", f"postfix/smtp[{number}]")]
        assert list(log.connections((each.encode() for each in begun), Clock(NEWEST))) == []
    tables = [each for each in vars(log).values() if isinstance(each, dict)]
    assert len(tables) >= 5
    assert all(len(table) <= 100 for table in tables)


def test_a_clock_forgets_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_log, "REMEMBERED", 100)
    clock = Clock(NEWEST)
    for minute in range(1000):
        assert clock.minute(f"2026-11-21T{minute // 60:02}:{minute % 60:02}".encode(), b"Z")
    assert len(clock._minutes) <= 100
