"""Mail measured with servers in private Postfix systems: the log, the figures, a real run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bench_tool import NEEDS_COMPILER, QUICK, measure, run
from support.postfix_instance import need_postfix
from support.tls_log_lines import FULL, RESUMED, TLS_1_2, as_log, line, smtp, smtpd

from bench import mail
from bench.figures import Usage
from bench.mail import Delivery, LogTail, MailFigures, MailRow, Spent, mail_figures, resumed_share
from bench.plot import plot
from bench.report import report
from bench.results import Results
from tlsmgr.log import Fatal


def delivery(program: str, delays: str, status: str = "sent") -> str:
    return line(
        f"4C9C2409AB: to=<a@b.test>, relay=r.test[127.0.0.1]:25, delay=9, delays={delays}, "
        f"dsn=2.0.0, status={status} (250 2.0.0 Ok: status=sent)",
        f"postfix/{program}[7]",
    )


# The log.


def test_a_log_that_is_made_with_its_first_line(tmp_path: Path) -> None:
    log = LogTail(tmp_path / "log")
    log.read()
    assert log.lines == []
    (tmp_path / "log").write_bytes(b"one\n")
    log.read()
    assert log.lines == [b"one"]


def test_deliveries_in_a_log_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(as_log([delivery("smtp", "0/0/9/9")]))
    log = LogTail(path)
    first = as_log([delivery("smtp", "5/0.1/0.25/0.5"), smtp(FULL), delivery("discard", "0/0/0/0")])
    with path.open("ab", buffering=0) as file:
        file.write(first[:40])
        log.read()
        assert log.lines == []
        file.write(first[40:])
        log.read()
        file.write(as_log([delivery("smtp", "5/0.1/1.5/0", "deferred")]))
        log.read()
    found = [(each.status, each.seconds) for each in log.deliveries("smtp")]
    assert found == [("sent", 0.75), ("deferred", 1.5)]
    assert [each.status for each in log.deliveries("discard")] == ["sent"]
    assert log.deliveries("error") == []
    assert len(log.lines) == 4


@pytest.mark.parametrize(
    ("lines", "share"),
    [
        ([smtp(FULL), smtp(RESUMED), smtp(RESUMED), smtp(RESUMED)], 0.75),
        ([smtp(FULL), smtpd(RESUMED)[0]], 0.0),  # each connection counts once
        ([smtp(TLS_1_2)], None),
        ([], None),
    ],
)
def test_the_share_of_resumed_sessions(lines: list[str], share: float | None) -> None:
    assert resumed_share(as_log(lines).splitlines()) == share


# Figures.


def spent(moment: float, tlsmgr: float, postfix: float, machine: float, own: float) -> Spent:
    return Spent(moment, Usage({8: tlsmgr}, machine), Usage({7: postfix}, machine), own)


def test_figures_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    done = [Delivery("sent", seconds, "") for seconds in (0.5, 0.1, 0.2, 0.3)]
    before, after = spent(10.0, 1.0, 5.0, 20.0, 0.5), spent(12.0, 1.5, 7.0, 24.0, 1.0)
    assert mail_figures(done, 0.75, before, after) == MailFigures(
        messages=4,
        seconds=2.0,
        rate=2.0,
        server_cpu=125_000,
        postfix_cpu=500_000,
        busy=0.5,
        resumed=0.75,
        p50=250_000,
        longest=500_000,
        others=1.5 / 8,
    )


def test_figures_of_a_server_that_was_replaced() -> None:
    after = spent(1.0, 1.0, 1.0, 1.0, 0.0)._replace(tlsmgr=Usage({9: 3.0}, 1.0))
    found = mail_figures([Delivery("sent", 1, "")], None, spent(0, 0, 0, 0, 0), after)
    assert found.server_cpu is None
    assert found.postfix_cpu == 1e6


def figures_of(rate: float, server_cpu: float, others: float = 0.0) -> MailFigures:
    return MailFigures(
        messages=9, seconds=1.0, rate=rate, server_cpu=server_cpu, postfix_cpu=4000.0, busy=0.5,
        resumed=1.0, p50=60.0, longest=70.0, others=others,
    )  # fmt: skip


def test_report_compares_with_the_same_kind_of_mail() -> None:
    rows = [
        MailRow("tickets", "stock", [figures_of(200, 100), figures_of(100, 100)]),
        MailRow("tickets", "ours", [figures_of(300, 50), figures_of(300, 50)]),
        MailRow("cache", "stock", [figures_of(1, 1, others=0.3)]),
        MailRow("cache", "ours", []),
    ]
    text = report(Results(["stock"], {}, mail=rows))
    words = [one.split() for one in text.splitlines()[2:6]]
    assert words[1] == ["tickets", "ours", "300.0", "50", "4,000", "50%", "100%", "60", "70",
                        "2.25", "0.5"]  # fmt: skip
    assert words[3][:4] == ["cache", "ours", "-", "-"]
    assert "DISTURBED: mail cache stock: 1 of 1 runs" in text


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib of the extra `plot` is not installed")
    rows = [MailRow("cache", "stock", [figures_of(1, 1)]), MailRow("cache", "ours", [])]
    plot(Results([], {}, mail=rows), tmp_path / "mail.svg")
    assert "mail: messages/s" in (tmp_path / "mail.svg").read_text()


# Servers.


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("ceiling", "it is not stock, stock-tmpfs, ours"),
        ("{}", r"\.venv/bin/python does not exist"),
    ],
)
def test_servers_that_cannot_deliver_mail(tmp_path: Path, server: str, message: str) -> None:
    need_postfix()
    (tmp_path / "tlsmgr").mkdir()
    (tmp_path / "tlsmgr/bootstrap.py").touch()
    with pytest.raises(Fatal, match=f"^cannot measure mail with .*{message}"):
        mail.check(["stock", "ours", server.format(tmp_path)])


@pytest.fixture
def disk() -> Iterator[str]:
    """A directory that Postfix may enter; at the end nothing may be left in it."""
    path = Path(tempfile.mkdtemp(prefix="mail-"))
    try:
        path.chmod(0o755)
        yield str(path)
        assert list(path.iterdir()) == []
    finally:
        shutil.rmtree(path)


@NEEDS_COMPILER
def test_mail_with_stock_and_ours(tmp_path: Path, disk: str) -> None:
    need_postfix()
    arguments = ("--loads", "none", "--mail", "cache", "--messages", "30", "--disk", disk)
    found = measure(tmp_path / "json", "stock", "ours", *QUICK, *arguments)
    assert [(row["mail"], row["server"]) for row in found["mail"]] == [
        ("cache", "stock"), ("cache", "ours"),
    ]  # fmt: skip
    for row in found["mail"]:
        assert len(row["rounds"]) == 2
        for one in row["rounds"]:
            assert one["messages"] == 30
            assert one["rate"] == pytest.approx(30 / one["seconds"])
            assert one["resumed"] == 1  # the sessions of the first round
            assert 0 < one["server_cpu"] < one["postfix_cpu"]
            assert 0 < one["p50"] <= one["longest"] < 1e6 * one["seconds"]
    assert found["mail"][1]["ratios"]["stock"]["rate"] > 0
    stock, ours = found["servers"]
    assert len(stock["memory"]) == 1
    assert len(ours["memory"]) >= 2
    assert stock["complaints"] == ours["complaints"] == []


@NEEDS_COMPILER
def test_mail_that_is_not_delivered_is_fatal(disk: str) -> None:
    need_postfix()
    arguments = ("--loads", "none", "--mail", "tickets", "--messages", "1", "--disk", disk)
    done = run("ours", *QUICK, *arguments, "-o", "relayhost=[127.0.0.1]:1")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "ours, mail tickets: not delivered: " in line
    assert "Connection refused" in line
