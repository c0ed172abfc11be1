"""SIGHUP to the daemon that a person started: it reads its configuration and keeps everything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support import control_client
from support.checkout import CHECKOUT
from support.daemon_clients import ask, ask_all, serves
from support.daemon_process import PATIENCE, Daemon, MakeDaemon, wait_for
from support.hangup import ANYWHERE, reload, starts_of, wait_for_drain, wait_for_workers
from support.live_processes import descriptors_of, workers_of
from support.raw_client import (
    OK,
    Connection,
    data_of,
    expect_seed,
    found,
    lookup,
    policy,
    policy_is,
    tktkey,
    update,
)
from support.settled_files import write_settled
from support.steady_clients import SteadyClients

ONE = "tlsmgr_worker_processes=1"


def key_of(daemon: Daemon) -> bytes:
    """The ticket key for new tickets."""
    return data_of(ask(daemon.socket_path, tktkey()), b"keybuf")


def complaints(daemon: Daemon) -> list[str]:
    """What was logged that an operator should look at."""
    return [line for line in daemon.lines() if re.match("(warning|error|fatal|panic): ", line)]


def test_sessions_keys_and_counts_are_kept(daemon: Daemon) -> None:
    """Through a chain of reloads, for who stays connected as well; the process is the same."""
    key = key_of(daemon)
    assert ask(daemon.socket_path, update(b"smtp", b"before", b"1")) == OK
    for _ in range(5):
        ask(daemon.socket_path, policy(b"smtp"))
    for number in range(3):
        before = daemon.worker_pids()
        with Connection(daemon.socket_path) as stays:
            expect_seed(stays, 32)
            reload(daemon, 2)
            session = b"in %d" % number
            assert stays.ask(update(b"smtp", session, b"2")) == OK
            assert stays.ask(lookup(b"smtp", b"before")) == found(b"1")
            assert data_of(stays.ask(tktkey()), b"keybuf") == key
        assert ask(daemon.socket_path, lookup(b"smtp", b"before")) == found(b"1")
        assert ask(daemon.socket_path, lookup(b"smtp", session)) == found(b"2")
        assert key_of(daemon) == key
        wait_for_drain(daemon, before)
    assert daemon.is_running
    taken = [line for line in daemon.lines() if line.startswith("took over")]
    assert taken == 3 * [
        f"took over from process {daemon.pid}: session ticket key {key[:4].hex()},"
        " smtpd cache, smtp cache, lmtp cache"
    ]
    assert control_client.status_of(daemon.socket_path)["counters"]["policy"] == 5
    assert complaints(daemon) == []


def test_busy_clients_lose_no_second(daemon: Daemon) -> None:
    """32 of them, with the habits of Postfix's, through three reloads."""
    with SteadyClients(daemon.socket_path, 32) as clients:
        for _ in range(3):
            served = clients.served
            wait_for(lambda n=served: clients.served > n + 200, "requests")  # type: ignore[misc]
            reload(daemon, 2)
        served = clients.served
        wait_for(lambda: clients.served > served + 200, "requests")
    assert clients.failures == []
    assert clients.lost == 0
    assert clients.longest < 1.0
    assert complaints(daemon) == []


def test_a_changed_configuration_holds(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    write_settled(tmp_path / "main.cf", "smtp_tls_session_cache_timeout = 10m\n")
    write_settled(tmp_path / "tlsmgr.cf", f"{ONE}\n")
    daemon = make_daemon(arguments=("-c", str(tmp_path)))
    key, before = key_of(daemon), daemon.worker_pids()
    assert ask(daemon.socket_path, policy(b"smtp")) == policy_is(0, 600)
    write_settled(
        tmp_path / "main.cf",
        "smtp_tls_session_cache_timeout = 20m\n"
        "smtp_tls_session_cache_database = btree:${data_directory}/smtp\n",
    )
    write_settled(
        tmp_path / "tlsmgr.cf",
        "tlsmgr_worker_processes = 3\nsmtp_tls_session_cache_size_limit = 2000000\n",
    )
    reload(daemon, 3)
    wait_for_drain(daemon, before)
    assert len(daemon.workers()) == 3
    assert ask(daemon.socket_path, policy(b"smtp")) == policy_is(1, 1200)
    assert key_of(daemon) == key
    assert complaints(daemon) == []


def test_without_a_hand_over_there_are_new_keys(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Turned off before, and by the reload itself. It serves all the same."""
    write_settled(tmp_path / "tlsmgr.cf", f"{ONE}\ntlsmgr_handover = no\n")
    daemon = make_daemon(arguments=("-c", str(tmp_path)))
    first = key_of(daemon)
    assert ask(daemon.socket_path, update(b"smtp", b"id", b"1")) == OK
    reload(daemon)
    second = key_of(daemon)
    write_settled(tmp_path / "tlsmgr.cf", f"{ONE}\n")
    reload(daemon)
    third = key_of(daemon)
    write_settled(tmp_path / "tlsmgr.cf", f"{ONE}\ntlsmgr_handover = no\n")
    reload(daemon)
    assert len({first, second, third, key_of(daemon)}) == 4
    assert ask(daemon.socket_path, lookup(b"smtp", b"id")) != found(b"1")
    assert complaints(daemon) == []


def test_relative_paths_mean_the_same(
    make_daemon: MakeDaemon, idle: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    (idle.state / "conf").mkdir()
    write_settled(idle.state / "conf" / "tlsmgr.cf", f"{ONE}\n")
    monkeypatch.chdir(idle.state)
    arguments = ("-c", "conf", "--socket", "s/socket", "--pid-file", "pid")
    daemon = make_daemon(arguments=arguments, sabotage=ANYWHERE)
    monkeypatch.undo()
    assert daemon.socket_path == f"{idle.state}/s/socket"
    key = key_of(daemon)
    for number in (2, 1):
        write_settled(idle.state / "conf" / "tlsmgr.cf", f"tlsmgr_worker_processes = {number}\n")
        before = daemon.worker_pids()
        reload(daemon, number)
        wait_for_drain(daemon, before)
        assert len(daemon.workers()) == number
    assert key_of(daemon) == key
    assert (idle.state / "pid").read_text() == f"{daemon.pid}\n"
    assert daemon.stop() == 0
    assert not (idle.state / "pid").exists()
    assert list((idle.state / "s").iterdir()) == []


@pytest.mark.parametrize(
    "name", [b"x\xff", "\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), b"a\nb"]
)
def test_directories_of_any_name(make_daemon: MakeDaemon, idle: Daemon, name: bytes) -> None:
    """What is no text in any locale as well."""
    state = idle.state / os.fsdecode(name)
    state.mkdir()
    arguments = ("--socket", f"{idle.state}/socket")
    daemon = make_daemon(ONE, arguments=arguments, state=str(state))
    key = key_of(daemon)
    reload(daemon)
    assert key_of(daemon) == key
    assert complaints(daemon) == []


def test_a_start_with_closed_descriptors(make_daemon: MakeDaemon, idle: Daemon) -> None:
    """Nothing else of the daemon becomes its standard output or error."""
    close = (
        f"{ANYWHERE}\nimport os\n"
        "if '--check' not in sys.argv and 'TLSMGR_RELOAD' not in os.environ:\n"
        "    os.closerange(0, 3)"
    )
    path = f"{idle.state}/socket"
    daemon = make_daemon(ONE, arguments=("--socket", path), sabotage=close, start=False)
    daemon.launch()
    daemon.socket_path = path
    wait_for(lambda: serves(daemon), "service")  # its socket exists before it listens
    key = data_of(ask(path, tktkey()), b"keybuf")
    for _ in range(2):
        before = daemon.worker_pids()
        daemon.send(signal.SIGHUP)
        wait_for_workers(daemon.pid, before, 1)
        assert data_of(ask(path, tktkey()), b"keybuf") == key
    assert {descriptors_of(daemon.pid)[n] for n in range(3)} == {os.devnull}
    assert daemon.stop() == 0


def test_ten_reloads_leave_no_trace(make_daemon: MakeDaemon) -> None:
    """The same descriptors, environment, mask and limits as after the first start; no zombie."""
    daemon = make_daemon(ONE)
    ask_all(daemon, 3)
    parent = psutil.Process(daemon.pid)

    def state() -> dict[str, object]:
        wanted = ("SigBlk", "SigIgn", "SigCgt", "Umask")
        lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        return {
            "descriptors": sorted(
                re.sub(r"[0-9a-f]{32}|\[\d+\]", "", target)
                for target in descriptors_of(daemon.pid).values()
            ),
            "status": [line for line in lines if line.split(":")[0] in wanted],
            "name": parent.name(),
            "directory": parent.cwd(),
            "children": len(parent.children()),
            "limits": Path(f"/proc/{daemon.pid}/limits").read_text(),
        }

    first, sizes = state(), set()
    for _ in range(10):
        before = daemon.worker_pids()
        reload(daemon)
        wait_for_drain(daemon, before)
        sizes.add(len(Path(f"/proc/{daemon.pid}/environ").read_bytes()) // 64)
        children = parent.children()
        assert [c for c in children if c.status() == psutil.STATUS_ZOMBIE] == []
    wait_for(lambda: state()["children"] == first["children"], "the same processes")
    assert state() == first
    assert len(sizes) <= 2, "the environment grows"
    assert complaints(daemon) == []


def test_many_signals_at_once(daemon: Daemon) -> None:
    """No more reloads than signals, at least one, and it serves throughout."""
    key = key_of(daemon)
    for _ in range(20):
        daemon.send(signal.SIGHUP)
        ask_all(daemon, 1)
    wait_for(lambda: starts_of(daemon) > 1, "a reload")
    calm = time.monotonic() + 2
    starts = starts_of(daemon)
    while time.monotonic() < calm:
        ask_all(daemon, 1)
        if starts != starts_of(daemon):
            starts, calm = starts_of(daemon), time.monotonic() + 2
    assert 2 <= starts <= 21
    assert key_of(daemon) == key
    assert complaints(daemon) == []


def test_the_end_may_come_at_any_moment_of_a_reload(make_daemon: MakeDaemon, idle: Daemon) -> None:
    """It leaves no socket, no pid file, no process and no memory."""
    pid_file = idle.state / "pid"
    for step in range(8):
        daemon = make_daemon(ONE, arguments=("--pid-file", str(pid_file)))
        with Connection(daemon.socket_path) as stays:
            expect_seed(stays, 4)
            daemon.send(signal.SIGHUP)
            time.sleep(step * 0.09)
            daemon.send(signal.SIGTERM if step % 2 else signal.SIGINT)
            assert daemon.wait() == 0, (step, daemon.log())
            wait_for(lambda d=daemon: not d.processes(), "end of all", 5)  # type: ignore[misc]
        assert not pid_file.exists(), step
        assert list((daemon.directory / "private").iterdir()) == [], step
        daemon.clean_up()


def test_after_a_kill_in_a_reload_another_one_can_start(make_daemon: MakeDaemon) -> None:
    """Old workers end by themselves; a new daemon takes the socket's place and has new keys."""
    daemon = make_daemon(ONE)
    with Connection(daemon.socket_path) as stays:
        key = data_of(stays.ask(tktkey()), b"keybuf")
        reload(daemon)
        daemon.send(signal.SIGKILL)
        assert daemon.wait() == -signal.SIGKILL
        expect_seed(stays, 4)
        wait_for(lambda: not os.path.exists(f"/proc/{daemon.pid}"), "its end")
    wait_for(lambda: not daemon.processes(), "end of its workers", 15)
    successor = make_daemon(ONE, state=str(daemon.state))
    assert key_of(successor) != key
    assert complaints(successor) == []


def test_a_stopped_worker_does_not_hinder_it(daemon: Daemon) -> None:
    key = key_of(daemon)
    stopped = daemon.workers()[0]
    stopped.suspend()
    reload(daemon, 2)
    assert key_of(daemon) == key
    ask_all(daemon)
    assert daemon.stop() == 0
    assert not stopped.is_running(), "it ends with the successor"


def test_a_hangup_of_the_terminal_ends_it(make_daemon: MakeDaemon) -> None:
    """As long as the terminal is there, the signal is a reload."""
    controller, terminal = os.openpty()
    take_it = (
        "import fcntl, os, signal, sys, termios\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # these tests may run under nohup(1)
        "if os.getsid(0) != os.getpid() and '--check' not in sys.argv:\n"
        "    os.setsid()\n"
        f"    fd = os.open({os.ttyname(terminal)!r}, os.O_RDWR)\n"
        "    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)"
    )
    daemon = make_daemon(ONE, sabotage=f"{ANYWHERE}\n{take_it}")
    os.close(terminal)
    before = daemon.worker_pids()
    reload(daemon)
    wait_for_workers(daemon.pid, before, 1)
    ask_all(daemon)
    os.close(controller)
    assert daemon.wait() == 0


def test_the_script(idle: Daemon) -> None:
    """scripts/tlsmgr-start, which is replaced by Python: the trial and the reload are not."""
    process = subprocess.Popen(
        [CHECKOUT / "scripts" / "tlsmgr-start", "-o", ONE],
        env=idle.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    path = process.stdout.readline().rstrip("\n")
    try:
        key = data_of(ask(path, tktkey()), b"keybuf")
        for _ in range(2):
            before = {worker.pid for worker in workers_of(process.pid)}
            process.send_signal(signal.SIGHUP)
            wait_for_workers(process.pid, before, 1)
            assert data_of(ask(path, tktkey()), b"keybuf") == key
    finally:
        process.terminate()
        output, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert output == "", "the path is printed once"
    assert "error" not in log, log
    assert not os.path.lexists(path)
