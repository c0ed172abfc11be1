"""tlsmgrctl report: the command itself, run as an operator runs it."""

from __future__ import annotations

import gzip
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support.checkout import CHECKOUT
from support.tls_log_lines import (
    FULL,
    MX,
    RESUMED,
    SIGNED,
    TLS_1_2,
    as_log,
    line,
    smtp,
    smtp_level_2,
    smtpd,
)

from tlsmgr.ctl import log_files, report_count, report_view
from tlsmgr.ctl.log_files import LogFile
from tlsmgr.ctl.mail_log import Clock, MailLog
from tlsmgr.ctl.report_count import OTHER_PEERS, Counts
from tlsmgr.ctl.report_view import FileRead

COMMAND = [sys.executable, "-m", "tlsmgr.ctl.main", "report"]
ENVIRONMENT = {**os.environ, "TZ": "UTC"}
Run = subprocess.CompletedProcess[str]

DAY = [
    smtp(FULL),
    *smtp_level_2(RESUMED, True),
    smtp(TLS_1_2, peer="mx.example.com[192.0.2.9]:25", stamp="Nov 21 01:00:00"),
    line(f"Untrusted TLS connection reused to {MX}: {SIGNED}"),
    *smtpd(FULL, False),
    *smtpd(TLS_1_2, True, program="postfix/smtpd[201]"),
    line("4X0Q7k: removed", "postfix/qmgr[9]"),
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A file with the lines of DAY, last written in November 2026."""
    return written(tmp_path / "mail.log", as_log(DAY))


def written(path: Path, data: bytes, day: int = 22) -> Path:
    """Make a file that was last written on that day of November 2026."""
    path.write_bytes(data)
    moment = time.mktime((2026, 11, day, 12, 0, 0, 0, 0, 0))
    os.utime(path, (moment, moment))
    return path


def report(*arguments: str | Path, stdin: bytes = b"") -> Run:
    run = subprocess.run(
        [*COMMAND, *arguments],
        cwd=CHECKOUT,
        env=ENVIRONMENT,
        input=stdin,
        capture_output=True,
        timeout=60,
    )
    return Run(run.args, run.returncode, run.stdout.decode(), run.stderr.decode())


def json_report(*arguments: str | Path, stdin: bytes = b"", status: int = 0) -> Any:
    run = report("--json", *arguments, stdin=stdin)
    assert run.returncode == status, run.stderr
    return json.loads(run.stdout)


def connections(shown: Any) -> int:
    """Return how many connections a JSON report has."""
    return sum(service["connections"] for service in shown["services"])


TABLES = """\
TLS connections in the mail log, 2026-11-21 00:00 to 2026-11-21 01:59
1 file, 17 lines

SERVICE        CONNECTIONS  RESUMED  FULL  UNKNOWN    RATE  REUSED CONNECTIONS
postfix/smtp             3        1     1        1  50.0 %                   1
postfix/smtpd            2        1     1        0  50.0 %                   0

SERVICE        TLS VERSION  CONNECTIONS  RESUMED  FULL  UNKNOWN     RATE
postfix/smtp   TLSv1.2                1        0     0        1        -
postfix/smtp   TLSv1.3                2        1     1        0   50.0 %
postfix/smtpd  TLSv1.2                1        1     0        0  100.0 %
postfix/smtpd  TLSv1.3                1        0     1        0    0.0 %

DESTINATION OF postfix/smtp (1 of 2)  CONNECTIONS  RESUMED  FULL  UNKNOWN    RATE
mx.example.org                                  2        1     1        0  50.0 %

HOUR OF postfix/smtp  CONNECTIONS  RESUMED  FULL  UNKNOWN    RATE
2026-11-21 00:00                2        1     1        0  50.0 %  ##########
2026-11-21 01:00                1        0     0        1       -

CLIENT OF postfix/smtpd  CONNECTIONS  RESUMED  FULL  UNKNOWN    RATE
client.example.net                 2        1     1        0  50.0 %

HOUR OF postfix/smtpd  CONNECTIONS  RESUMED  FULL  UNKNOWN    RATE
2026-11-21 00:00                 2        1     1        0  50.0 %  ##########

Session cache of postfix/smtp: 1 of 1 lookups found a session (100.0 %).

Note: smtp_tls_loglevel is below 2 in at least a part of these logs. They do
not show the outcome of 1 of 3 connections of postfix/smtp; the rate leaves
these out. With smtp_tls_loglevel = 2 all are shown.
"""


def test_the_tables(log: Path) -> None:
    run = report("--top", "1", log)
    assert (run.stdout, run.stderr, run.returncode) == (TABLES, "", 0)


def test_the_object(log: Path) -> None:
    shown = json_report(log)
    tally = {"connections": 3, "resumed": 1, "full": 1, "unknown": 1, "rate": 0.5}
    cache = {"lookups": 1, "found": 1, "missed": 0, "lost": 0, "elsewhere": 0}
    assert shown["files"] == [{"name": str(log), "lines": 17, "problem": None}]
    assert shown["services"][0] == {
        "service": "postfix/smtp", **tally, "reused_connections": 1, "cache": cache,
    }  # fmt: skip
    assert shown["services"][1]["cache"] is None
    hour = shown["hours"][-1]
    assert (hour["hour"], hour["service"]) == ("2026-11-21T01:00:00+00:00", "postfix/smtp")
    assert (hour["connections"], hour["unknown"], hour["rate"]) == (1, 1, None)
    assert [row["version"] for row in shown["versions"]] == ["TLSv1.2", "TLSv1.3"] * 2
    assert [row["peer"] for row in shown["peers"]] == [
        "mx.example.org", "mx.example.com", "client.example.net",
    ]  # fmt: skip
    (note,) = shown["notes"]
    assert "smtp_tls_loglevel is below 2" in note


def test_a_level_that_shows_nothing_is_named(tmp_path: Path) -> None:
    """Not 0 %: the log does not show it."""
    path = written(tmp_path / "log", as_log([smtp(TLS_1_2), *smtpd(FULL)]))
    output = " ".join(report(path).stdout.split())
    assert (
        "smtp_tls_loglevel is below 2 in these logs: resumed sessions of postfix/smtp are not shown"
    ) in output
    assert "smtpd_tls_loglevel" not in output
    assert json_report(path)["services"][0]["rate"] is None


def test_lost_sessions_are_shown(tmp_path: Path) -> None:
    lines = smtp_level_2(FULL, False)
    other = [each.replace(" mail ", " other ") for each in lines]
    output = report(written(tmp_path / "log", as_log([*lines, *lines, *other]))).stdout
    assert "0 of 3 lookups found a session (0.0 %)." in output
    for host in ("the same host", "another host"):
        saved = f"although {host} had saved that session less than an hour before"
        assert f"\nNot found {saved}: 1 (33.3 %).\n" in output


# Files


def compressed(data: bytes) -> bytes:
    """In two members, as a log that was appended to."""
    return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])


@pytest.mark.parametrize("pack", [bytes, compressed, lambda data: data.replace(b"\n", b"\r\n")])
@pytest.mark.parametrize("by_name", [True, False])
def test_plain_and_compressed(pack: Callable[[bytes], bytes], by_name: bool, log: Path) -> None:
    data = pack(log.read_bytes())
    if by_name:
        shown = json_report(written(log, data))
    else:
        shown = json_report("-", stdin=data)
        assert shown["files"][0]["name"] == "standard input"
    assert connections(shown) == 5
    assert shown["files"][0]["lines"] == 17


def test_the_last_line_may_lack_its_newline(tmp_path: Path) -> None:
    shown = json_report(written(tmp_path / "log", as_log([smtp(FULL)] * 2).rstrip()))
    assert (connections(shown), shown["files"][0]["lines"]) == (2, 2)


def test_a_handshake_in_two_rotated_files(tmp_path: Path) -> None:
    """The newer file comes first, as a shell puts mail.log and mail.log.1.gz."""
    lines = smtp_level_2(TLS_1_2, True)
    new = written(tmp_path / "mail.log", as_log(lines[6:]), day=22)
    old = written(tmp_path / "mail.log.1.gz", gzip.compress(as_log(lines[:6])), day=21)
    for names in ((new, old), (old, new), (new, old, new)):
        shown = json_report(*names)
        assert [file["name"] for file in shown["files"]] == [str(old), str(new)]
        assert (connections(shown), shown["services"][0]["resumed"]) == (1, 1)


def test_the_year_follows_from_the_age_of_the_file(tmp_path: Path) -> None:
    old = written(tmp_path / "old", as_log([smtp(FULL, stamp="Nov 23 00:00:00")]), day=22)
    assert json_report(old)["hours"][0]["hour"] == "2026-11-23T00:00:00+00:00"
    old = written(tmp_path / "old", as_log([smtp(FULL, stamp="Nov 24 00:00:00")]), day=22)
    assert json_report(old)["hours"][0]["hour"] == "2025-11-24T00:00:00+00:00"


@pytest.mark.parametrize("kept", [0.3, 0.9, 1.0])
def test_a_damaged_file_gives_all_before_the_damage(kept: float, tmp_path: Path, log: Path) -> None:
    lines = [smtp(FULL, peer=f"mx{i}.example.org[192.0.2.1]:25") for i in range(20_000)]
    data = gzip.compress(as_log(lines))
    if kept == 1.0:
        data = data[:-6] + b"damage"  # of the checksum
    broken = written(tmp_path / "broken.gz", data[: int(len(data) * kept)])
    run = report("--json", broken, log)
    shown = json.loads(run.stdout)
    assert run.returncode == 1
    assert run.stderr.startswith(f"tlsmgrctl: warning: {broken}: only ")
    assert run.stderr.count("\n") == 1
    assert shown["files"][0]["problem"] == run.stderr.removeprefix("tlsmgrctl: warning: ").rstrip()
    assert 20_000 * kept * 0.9 < connections(shown) - 5 <= 20_000 * kept * 1.1


UNREADABLE = {
    "missing": (None, "cannot be read: No such file or directory"),
    "binary": (b"\x7fELF\0\0" * 50, "binary data, not a log"),
    "xz": (b"\xfd7zXZ\0", "this compression is not supported; use `xzcat"),
    "bzip2": (b"BZh91AY", "this compression is not supported; use `bzcat"),
    "cut": (b"\x1f\x8b\x08", "cannot be read: Compressed file ended"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_file_does_not_stop_the_others(kind: str, tmp_path: Path, log: Path) -> None:
    data, reason = UNREADABLE[kind]
    bad = tmp_path / "bad"
    if data is not None:
        written(bad, data)
    run = report("--json", bad, log)
    assert run.returncode == 1
    assert run.stderr.startswith(f"tlsmgrctl: warning: {bad}: {reason}")
    assert run.stderr.count("\n") == 1
    assert connections(json.loads(run.stdout)) == 5


def test_a_directory_is_no_file(tmp_path: Path, log: Path) -> None:
    run = report(tmp_path, log)
    assert run.returncode == 1
    assert run.stderr == f"tlsmgrctl: warning: {tmp_path}: cannot be read: Is a directory\n"


def test_nothing_can_be_read(tmp_path: Path) -> None:
    run = report(tmp_path / "one", tmp_path / "two")
    assert (run.returncode, run.stdout) == (1, "")
    lines = run.stderr.splitlines()
    assert [each.partition(" /")[0] for each in lines[:2]] == ["tlsmgrctl: warning:"] * 2
    assert lines[2] == "tlsmgrctl: no file of the log can be read"


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", as_log([line("connect from x", "postfix/smtpd[1]")])]
)
def test_a_log_without_tls(data: bytes, tmp_path: Path) -> None:
    run = report(written(tmp_path / "log", data))
    assert (run.returncode, run.stderr) == (0, "")
    assert "Note: there is no TLS connection in these logs." in run.stdout
    assert json_report(tmp_path / "log")["services"] == []


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    """The lines around it count; the summary in its middle does not."""
    quoted = b"x" * log_files.BLOCK * 3 + b" " + as_log([smtp(FULL)])
    path = written(tmp_path / "log", as_log([smtp(FULL)]) + quoted + as_log([smtp(FULL)]))
    longest = 0
    counts = Counts()
    for lines in LogFile(str(path)).blocks():
        longest = max(longest, *map(len, lines))
        counts.add(MailLog().connections(lines, Clock(LogFile(str(path)).newest)))
    assert counts.services["postfix/smtp"].handshakes == 2
    assert longest <= 2 * log_files.BLOCK


# Counting and showing


def test_many_peers_are_counted_together(monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    monkeypatch.setattr(report_count, "PEERS", 10)
    counts = Counts()
    lines = [smtp(FULL, peer=f"mx{i}.example.org[192.0.2.1]:25").encode() for i in range(50)]
    counts.add(MailLog().connections([*lines, *lines], Clock(LogFile(str(log)).newest)))
    peers = counts.peers("postfix/smtp")
    assert len(peers) == 11
    assert next(iter(peers)) == OTHER_PEERS
    assert sum(tally.handshakes for tally in peers.values()) == 100


def test_names_of_strangers_are_shown_safely(tmp_path: Path) -> None:
    peer = "\x1b]0;owned\x07.example.org[192.0.2.1]:25"
    path = written(
        tmp_path / "log", as_log([smtp(FULL, peer=peer), smtp(FULL, peer="x" * 900 + peer)])
    )
    for arguments in ((), ("--json",)):
        run = report(*arguments, path)
        assert "owned" in run.stdout
        assert all(each.isprintable() for each in run.stdout.splitlines())
    longest = max(map(len, report(path).stdout.splitlines()))
    assert longest < 2 * report_view.LONGEST_NAME + 50


def test_top(log: Path) -> None:
    def peers(top: str) -> int:
        return len(json_report("--top", top, log)["peers"])

    assert (peers("1"), peers("2"), peers("0")) == (2, 3, 3)


@pytest.mark.parametrize(
    "arguments", [(), ("--top", "-1", "-"), ("--top", "x", "-"), ("--no", "-")]
)
def test_wrong_usage(arguments: Iterable[str]) -> None:
    run = report(*arguments)
    assert run.returncode in (2, 64)
    assert run.stdout == ""
    assert run.stderr.startswith("usage: tlsmgrctl ")


def test_a_reader_may_stop_early(tmp_path: Path) -> None:
    lines = [smtp(FULL, peer=f"mx{i}.example.org[192.0.2.1]:25") for i in range(5000)]
    path = written(tmp_path / "log", as_log(lines))
    shell = f"{sys.executable} -m tlsmgr.ctl.main report --top 0 {path} | head -n 1"
    run = subprocess.run(["sh", "-c", shell], cwd=CHECKOUT, capture_output=True, timeout=60)
    assert run.stdout.startswith(b"TLS connections in the mail log")
    assert run.stderr == b""


# The progress bar


def test_a_terminal_has_a_progress_bar(log: Path) -> None:
    ours, theirs = pty.openpty()
    run = subprocess.run(
        [*COMMAND, log], cwd=CHECKOUT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert run.returncode == 0
    assert "[########################################] 100%" in shown
    assert shown.endswith("\r\x1b[K")  # and the line is clear at the end


def test_a_terminal_shows_how_much_of_standard_input_was_read() -> None:
    ours, theirs = pty.openpty()
    run = subprocess.run(
        [*COMMAND, "-"],
        cwd=CHECKOUT,
        input=b"\n" * (3 << 20),
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert run.returncode == 0
    assert " MiB" in shown


# Speed


def test_it_takes_little_longer_than_to_split_the_lines(tmp_path: Path) -> None:
    """A log of which a seventh is TLS summaries, as at level 1."""
    others = [
        line(f"4X0Q7k: from=<a@example.org>, size={i}, nrcpt=1", "postfix/qmgr[9]")
        for i in range(6)
    ]
    lines = [
        each for i in range(10_000) for each in (smtp(FULL, f"postfix/smtp[{i % 50}]"), *others)
    ]
    path = written(tmp_path / "log", as_log(lines))

    def split() -> None:
        with path.open("rb") as file:
            for each in file:
                each.split()

    def read() -> None:
        file, counts, log = LogFile(str(path)), Counts(), MailLog()
        clock = Clock(file.newest)
        for block in file.blocks():
            counts.add(log.connections(block, clock))
        assert counts.services["postfix/smtp"].handshakes == 10_000

    ratios = sorted(seconds(read) / seconds(split) for _ in range(5))
    assert ratios[2] < 5


def seconds(run: Callable[[], None]) -> float:
    """Return the processor time that it takes."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


# The picture


def drawn(counts_of: Path, picture: Path) -> Run:
    pytest.importorskip("matplotlib", reason="matplotlib of the extra `plot` is not installed")
    return report("--plot", picture, counts_of)


@pytest.mark.parametrize(
    ("end", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_a_picture(end: str, magic: bytes, tmp_path: Path, log: Path) -> None:
    picture = tmp_path / f"picture{end}"
    run = drawn(log, picture)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("TLS connections in the mail log")
    assert picture.read_bytes().startswith(magic)


def test_a_picture_of_nothing(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    assert drawn(written(tmp_path / "log", b""), picture).returncode == 0
    assert picture.stat().st_size > 0


def test_a_picture_shows_names_as_they_are(tmp_path: Path) -> None:
    """A service may have any name; between dollar signs, matplotlib would see a formula."""
    path = written(tmp_path / "log", as_log([smtp(FULL, program="$\\nonsense{$/smtp[1]")]))
    picture = tmp_path / "picture.svg"
    run = drawn(path, picture)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_picture_of_an_unknown_type(tmp_path: Path, log: Path) -> None:
    run = drawn(log, tmp_path / "picture.doc")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("tlsmgrctl: ")
    assert ".png" in run.stderr


def test_a_picture_that_cannot_be_written(tmp_path: Path, log: Path) -> None:
    run = drawn(log, tmp_path / "nowhere" / "picture.png")
    assert run.returncode == 1
    assert run.stdout.startswith("TLS connections in the mail log")  # that is not lost
    assert run.stderr.endswith("picture.png: No such file or directory\n")


def test_no_picture_without_matplotlib(tmp_path: Path, log: Path) -> None:
    """It is said before the logs are read."""
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError")
    run = subprocess.run(
        [*COMMAND, "--plot", tmp_path / "picture.png", log],
        cwd=CHECKOUT,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert (
        run.stderr
        == "tlsmgrctl: --plot needs the Python package matplotlib: pip install matplotlib\n"
    )


def test_the_view_needs_no_file() -> None:
    assert report_view.lines(Counts(), [FileRead("x", 0, "gone")], 1)[:2] == [
        "TLS connections in the mail log",
        "0 files, 0 lines",
    ]
