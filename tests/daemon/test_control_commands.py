"""tlsmgrctl status, list, drop and rotate, as an operator runs them, on the real daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.checkout import CHECKOUT
from support.control_client import status_of
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.raw_client import OK, Connection, update

from tlsmgr import __version__

SESSION = bytes.fromhex("3007 020101 02020303")  # the beginning of an SSL_SESSION of TLS 1.2
Run = subprocess.CompletedProcess[str]


def ctl(daemon: Daemon, *arguments: str) -> Run:
    command = [sys.executable, "-m", "tlsmgr.ctl.main", "--socket", daemon.socket_path]
    return subprocess.run(
        [*command, *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )


def output(run: Run) -> list[str]:
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


def store(daemon: Daemon, *ids: bytes) -> None:
    with Connection(daemon.socket_path) as connection:
        for cache_id in ids:
            assert connection.ask(update(b"smtp", cache_id, SESSION)) == OK


def test_status(daemon: Daemon) -> None:
    """Without a command as well; each value is in the view or in the object."""
    shown = output(ctl(daemon))
    assert shown[0] == f"tlsmgr {__version__}, pid {daemon.pid}: serving"
    assert f"configuration  {daemon.directory}" in shown
    assert {line.split()[0] for line in shown if line} >= {"smtpd", "smtp", "lmtp", "seed"}
    assert {str(pid) for pid in daemon.worker_pids()} <= {line.split(" ")[0] for line in shown}
    (line,) = output(ctl(daemon, "status", "--json"))
    assert json.loads(line)["pid"] == daemon.pid


def test_metrics(daemon: Daemon) -> None:
    """Of the real daemon: promtool(1) has nothing to say, and no count comes under two names."""
    store(daemon, b"a")
    text = output(ctl(daemon, "metrics", "--text"))
    families = list(parse_text("\n".join([*text, ""])))
    names = {family.name.removeprefix("postfix_tlsmgr_") for family in families}
    assert {"requests", "cache_hits", "cache_evictions", "connections"} <= names
    assert not {"hits", "expired", "evicted", "lookup", "update", "delete", "seed"} & names
    if shutil.which("promtool") is None:
        pytest.skip("promtool of the package prometheus is not installed")
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input="\n".join([*text, ""]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_degraded_daemon(daemon: Daemon) -> None:
    """Exit status 1 and the reason on standard error; the view is printed all the same."""
    os.kill(daemon.pid, signal.SIGSTOP)  # it starts no other worker
    try:
        daemon.workers()[0].kill()
        wait_for(lambda: status_of(daemon.socket_path)["state"] == "degraded", "degraded", 10)
        run = ctl(daemon, "status")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert run.returncode == 1
    assert run.stderr == "tlsmgrctl: 1 of 2 workers serve\n"
    assert run.stdout.startswith(
        f"tlsmgr {__version__}, pid {daemon.pid}: degraded\n  ! 1 of 2 workers"
    )


def test_no_daemon(idle: Daemon) -> None:
    idle.socket_path = str(idle.state / "none")
    for command in (["status"], ["list", "smtp"], ["drop", "smtp", "--all"], ["rotate"]):
        run = ctl(idle, *command)
        assert (run.returncode, run.stdout) == (1, "")
        assert run.stderr == (
            f"tlsmgrctl: connect to {idle.socket_path}: No such file or directory;"
            " no tlsmgr serves there\n"
        )


def test_list(daemon: Daemon) -> None:
    store(daemon, b"host1&x", b"host2&\xff y", b"\x1b[2J")
    shown = output(ctl(daemon, "list", "smtp"))
    assert [line.split()[1:] for line in shown] == [
        ["9", "TLSv1.2", "host1&x"], ["9", "TLSv1.2", "host2&%FF%20y"], ["9", "TLSv1.2", "%1B[2J"],
    ]  # fmt: skip
    assert all(line.split()[0].endswith("s") for line in shown)
    for match in ("&%FF%20", "&\udcff y"):  # as it is shown, and as it is
        (line,) = output(ctl(daemon, "list", "smtp", "--match", match))
        assert line.endswith(" host2&%FF%20y")
    (line,) = output(ctl(daemon, "list", "smtp", "--json", "--match", "host1"))
    assert json.loads(line)["id"] == "host1&x"
    assert output(ctl(daemon, "list", "smtpd")) == []


def test_a_list_that_is_read_slowly(daemon: Daemon) -> None:
    """As in less(1): the daemon does not wait for who reads the list; in the end it would not."""
    store(daemon, *(b"%05d" % number + b"x" * 200 for number in range(5000)))
    (process,) = (each for each in daemon.processes() if each.name() == "tlsmgr-control")
    before = process.num_fds()
    command = [sys.executable, "-m", "tlsmgr.ctl.main", "--socket", daemon.socket_path]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, "list", "smtp"], cwd=CHECKOUT, stdout=pipe, stderr=pipe
    ) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert b" 00000x" in listing.stdout.readline()
        wait_for(lambda: process.num_fds() == before, "the end of the connection", timeout=20)
        rest, errors = listing.stdout.read(), listing.stderr.read()
    assert (listing.returncode, errors) == (0, b"")
    assert rest.count(b"\n") == 4999


def test_drop(daemon: Daemon) -> None:
    store(daemon, b"host1", b"host2", b"other")
    assert output(ctl(daemon, "drop", "smtp", "--match", "host")) == ["2 smtp sessions dropped"]
    assert output(ctl(daemon, "drop", "smtp", "--all", "--json")) == ['{"dropped":1}']
    assert output(ctl(daemon, "drop", "smtp", "--match", "host")) == ["0 smtp sessions dropped"]


def test_rotate(daemon: Daemon) -> None:
    (line,) = output(ctl(daemon, "rotate"))
    name = line.removeprefix("the key for new tickets is now ")
    assert status_of(daemon.socket_path)["ticket_keys"][0]["name"] == name
    (line,) = output(ctl(daemon, "rotate", "--json"))
    assert json.loads(line)["name"] != name


def test_what_is_wrong_usage(daemon: Daemon) -> None:
    store(daemon, b"kept")
    for arguments in (
        ["drop", "smtp"],
        ["drop", "smtp", "--all", "--match", "x"],
        ["drop", "smtp", "--match", ""],
        ["list", "smtp", "--match", "100%"],
        ["list", "sm\udcfftp"],
        ["drop", "smtp all\n", "--match", "x"],  # two requests, if it were sent as it is
        ["drop", "", "--all"],
        ["list"],
        ["rotate", "now"],
    ):
        run = ctl(daemon, *arguments)
        assert (run.returncode, run.stdout) == (2, ""), arguments
        assert "Traceback" not in run.stderr
    assert len(output(ctl(daemon, "list", "smtp"))) == 1


def test_what_the_daemon_refuses(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("lmtp_tls_session_cache_database=")
    run = ctl(daemon, "list", "lmtp")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "tlsmgrctl: there is no lmtp session cache (there are: smtpd, smtp)\n"
