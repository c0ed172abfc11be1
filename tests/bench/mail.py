"""mail - messages per second that smtp(8) delivers over TLS, each by a connection of its own.

Each server runs in a private Postfix on loopback, with its queue and its caches on the disk. The
sink is a second smtpd(8) of the same Postfix, which discards the messages: both ends of a handshake
ask the same tlsmgr. A round puts messages on hold, then releases all of them at once; it lasts from
the release to the last delivery. The servers take turns, after a first round that does not count.

Durations and resumed sessions are those in the mail log. Postfix logs the durations of connecting
and of sending with two significant digits each.
"""

from __future__ import annotations

import contextlib
import os
import re
import smtplib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
from support.growing_log import GrowingLog
from support.launcher import BOOTSTRAP, write_launcher
from support.postfix_instance import PostfixInstance
from support.postfix_sandbox import postfix_missing

from bench.figures import Run, Usage, usage
from bench.runs import Bench
from bench.servers import MEMORY, Server, ServerSpec, family, stock_cache_type
from tlsmgr.ctl.mail_log import Clock, MailLog, Outcome
from tlsmgr.log import Fatal

MESSAGES = 500  # in a round
MESSAGE = "Subject: test\r\n\r\nHello.\r\n"
MICROSECONDS = 1e6  # in a second
AT_ONCE = 30  # deliveries: enough that the CPUs are busy while others wait for the disk
TIME_LIMIT = 120.0  # seconds for a round
MAIL = {
    "tickets": "sessions are resumed with tickets, Postfix's default",
    "cache": "the receiving side issues no tickets and caches its sessions",
}
KIND_PARAMETERS: Mapping[str, dict[str, str]] = {
    "tickets": {},
    "cache": {"tls_ssl_options": "NO_TICKET"},
}
PARAMETERS = {
    "smtpd_helo_restrictions": "check_helo_access inline:{client.test=HOLD}",  # not the sink's
    "smtp_connection_cache_on_demand": "no",
    "smtp_tls_loglevel": "1",
    "smtpd_tls_loglevel": "1",
    "default_destination_concurrency_limit": str(AT_ONCE),
    "initial_destination_concurrency": str(AT_ONCE),
    "in_flow_delay": "0",  # else the sink waits when it accepts faster than it discards
    "delay_logging_resolution_limit": "6",
}
PICKUP = "pickup unix n - n 60 1 pickup\n"  # postqueue(1) wants it
STOCK_DATA = {"stock": None, "stock-tmpfs": MEMORY}  # parents of data_directory


@dataclass(frozen=True, kw_only=True)
class MailFigures(Run):
    """The figures of one round. Times in microseconds; None where there is no value."""

    messages: int
    seconds: float
    rate: float  # messages per second
    server_cpu: float | None  # CPU time per message, all processes of tlsmgr
    postfix_cpu: float | None  # the same for all processes of Postfix, tlsmgr among them
    busy: float  # share of the machine that all processes used
    resumed: float | None  # share of the deliveries' sessions
    p50: float  # duration of a delivery: connection, handshake, message
    longest: float


METRICS = ("rate", "server_cpu", "postfix_cpu", "busy", "resumed", "p50", "longest", "others")
RATIOS = ("rate", "server_cpu", "postfix_cpu", "p50", "longest")


class MailRow(NamedTuple):
    """A kind of mail with a server, and its figures round by round."""

    mail: str
    server: str
    rounds: list[MailFigures]


def mail_rows(servers: Sequence[str], kinds: Sequence[str]) -> list[MailRow]:
    """Return a row for each measurement, in the order of the report, without figures."""
    return [MailRow(kind, server, []) for kind in kinds for server in servers]


def run_mail(
    bench: Bench, rows: Sequence[MailRow], spec: ServerSpec, messages: int
) -> Iterator[Server]:
    """Run all rows, round by round; yield each server after its last round."""
    for kind in dict.fromkeys(row.mail for row in rows):
        mine = [row for row in rows if row.mail == kind]
        with contextlib.ExitStack() as stack:
            systems = [stack.enter_context(_system(row, spec)) for row in mine]
            for row, system in zip(mine, systems):
                bench.tick(f"mail {kind} {row.server}, first round")
                system.run(messages)
            for _ in range(bench.rounds):
                for row, system in zip(mine, systems):
                    bench.tick(f"mail {kind} {row.server}")
                    row.rounds.append(bench.undisturbed(partial(system.run, messages)))
            yield from (system.server for system in systems)


# Postfix systems.


def check(names: Sequence[str]) -> None:
    """Fatal if mail cannot be measured with one of these servers."""
    if reason := postfix_missing():
        raise Fatal(f"cannot measure mail: {reason}")
    for name in names:
        if name in STOCK_DATA or name == "ours":
            continue
        if not _bootstrap(name).exists():
            raise Fatal(f"cannot measure mail with {name}: it is not stock, stock-tmpfs, ours, "
                        "or a checkout of this project")  # fmt: skip
        if not _python(name).exists():
            raise Fatal(f"cannot measure mail with {name}: {_python(name)} does not exist; "
                        "its scripts/tlsmgr-start makes it")  # fmt: skip


def _bootstrap(name: str) -> Path:
    return Path(BOOTSTRAP) if name == "ours" else Path(name).resolve() / "tlsmgr/bootstrap.py"


def _python(name: str) -> Path:
    return Path(sys.executable) if name == "ours" else Path(name).resolve() / ".venv/bin/python"


@contextlib.contextmanager
def _system(row: MailRow, spec: ServerSpec) -> Iterator[MailSystem]:
    """Start a Postfix with that server; at the end it is stopped and removed."""
    command, options = "tlsmgr", {}
    if row.server not in STOCK_DATA:
        place = Path(tempfile.mkdtemp(prefix="launch-", dir=spec.directory))
        program = str(_bootstrap(row.server))
        command = write_launcher(place, python=str(_python(row.server)), program=program)
        options = dict(option.split("=", 1) for option in spec.options)
    postfix = PostfixInstance(
        tlsmgr=command,
        cache_type=stock_cache_type(),
        parent=spec.disk,
        data_parent=STOCK_DATA.get(row.server),
        mail=True,
        services=PICKUP,
        parameters={**spec.all_parameters, **PARAMETERS, **KIND_PARAMETERS[row.mail], **options},
    )
    try:
        postfix.start()
        yield MailSystem(postfix, row)
    except RuntimeError as error:
        raise Fatal(f"{row.server}: {one_line(error)}") from None
    finally:
        postfix.stop()
        postfix.remove()


class MailSystem:
    """A running Postfix with the server of that row."""

    def __init__(self, postfix: PostfixInstance, row: MailRow) -> None:
        self._postfix = postfix
        self._master = psutil.Process(postfix.master_pid())
        self._whole = Server(row.server, "", lambda: family(self._master))
        self.server = Server(
            name=f"{row.server}, mail {row.mail}",
            socket=str(postfix.socket),
            processes=self._tlsmgr,
            data=postfix.data,
            log=postfix.log_file,
        )

    def _tlsmgr(self) -> list[psutil.Process]:
        """Return tlsmgr's processes: the one that master(8) started, and its descendants."""
        return family(next((c for c in self._master.children() if c.name() == "tlsmgr"), None))

    def run(self, messages: int) -> MailFigures:
        """Deliver that many messages and return the figures. Fatal if that fails."""
        try:
            self._hold(messages)
            self._postfix.run("postsuper", "-H", "ALL")
            log = LogTail(self._postfix.log_file)
            before = self._spent()
            self._postfix.run("postqueue", "-f")
            self._wait(log, "smtp", messages)
            after = self._spent()
            self._wait(log, "discard", messages)
        except (RuntimeError, OSError, smtplib.SMTPException) as error:
            raise Fatal(f"{self.server.name}: {one_line(error)}") from None
        return mail_figures(log.deliveries("smtp"), resumed_share(log.lines), before, after)

    def _hold(self, messages: int) -> None:
        """Submit messages, which are put on hold."""
        with smtplib.SMTP("127.0.0.1", self._postfix.port, "client.test", timeout=60) as client:
            for _ in range(messages):
                client.sendmail("sender@origin.test", "someone@destination.test", MESSAGE)

    def _wait(self, log: LogTail, program: str, messages: int) -> None:
        """Wait until that program has delivered all messages. Fatal if it fails or takes long."""
        deadline = time.monotonic() + TIME_LIMIT
        while True:
            log.read()
            done = log.deliveries(program)
            if failed := [each for each in done if each.status != "sent"]:
                raise Fatal(f"{self.server.name}: not delivered: {failed[0].line}")
            if len(done) >= messages:
                return
            if time.monotonic() > deadline:
                raise Fatal(f"{self.server.name}: {program}(8) delivered {len(done)} of {messages} "
                            f"messages in {TIME_LIMIT:.0f} s")  # fmt: skip
            time.sleep(0.01)

    def _spent(self) -> Spent:
        own = sum(os.times()[:4])
        return Spent(time.monotonic(), usage(self.server), usage(self._whole), own)


def one_line(error: Exception) -> str:
    """Return the error's text without line ends."""
    return " ".join(str(error).split())


# The mail log.


class Delivery(NamedTuple):
    """A line about a delivery."""

    status: str
    seconds: float  # from the start of the connection to the reply
    line: str


class LogTail:
    """The lines that a log gets from now on."""

    def __init__(self, path: Path) -> None:
        self.lines: list[bytes] = []
        self._log = GrowingLog(path, path.stat().st_size if path.exists() else 0)
        self._deliveries: dict[str, list[Delivery]] = {}

    def read(self) -> None:
        """Add the lines that are complete."""
        fresh = self._log.fresh().splitlines()
        self.lines += fresh
        for line in fresh:
            if found := _DELIVERY.search(line):
                program, setup, sending, status = (part.decode() for part in found.groups())
                delivery = Delivery(status, float(setup) + float(sending), line.decode())
                self._deliveries.setdefault(program, []).append(delivery)

    def deliveries(self, program: str) -> list[Delivery]:
        """Return the deliveries by that program."""
        return self._deliveries.get(program, [])


_DELIVERY = re.compile(
    rb"/(smtp|discard)\[\d+\]: \w+: to=<.*, delays=[\d.]+/[\d.]+/([\d.]+)/([\d.]+), "
    rb".*status=(\w+) "
)


def resumed_share(lines: Sequence[bytes]) -> float | None:
    """Return the share of smtp(8)'s handshakes that resumed a session; None if no line tells."""
    found = MailLog().connections(lines, Clock(datetime.now()))
    outcomes = [each.outcome for each in found if each.service.endswith("/smtp")]
    told = [outcome is Outcome.RESUMED for outcome in outcomes if outcome is not Outcome.UNKNOWN]
    return sum(told) / len(told) if told else None


# Figures.


class Spent(NamedTuple):
    """The time, and the CPU time used until then."""

    moment: float
    tlsmgr: Usage
    postfix: Usage  # tlsmgr included
    own: float  # by this process and its children


def mail_figures(
    deliveries: Sequence[Delivery], resumed: float | None, before: Spent, after: Spent
) -> MailFigures:
    """Return the figures of a round."""
    seconds, messages = after.moment - before.moment, len(deliveries)
    tlsmgr = after.tlsmgr.server_since(before.tlsmgr)
    postfix = after.postfix.server_since(before.postfix)
    machine = after.postfix.machine - before.postfix.machine
    available = seconds * (os.cpu_count() or 1)
    others = None if postfix is None else machine - postfix - (after.own - before.own)
    durations = [MICROSECONDS * each.seconds for each in deliveries]
    return MailFigures(
        messages=messages,
        seconds=seconds,
        rate=messages / seconds,
        server_cpu=_per_message(tlsmgr, messages),
        postfix_cpu=_per_message(postfix, messages),
        busy=machine / available,
        resumed=resumed,
        p50=median(durations),
        longest=max(durations),
        others=None if others is None else max(0.0, others / available),
    )


def _per_message(seconds: float | None, messages: int) -> float | None:
    return None if seconds is None else seconds * MICROSECONDS / messages
