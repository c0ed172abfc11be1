"""The standalone daemon in the background, and its pid file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import psutil
import pytest
from support.daemon_clients import ask
from support.daemon_process import PATIENCE, PROGRAM, Daemon, MakeDaemon, wait_for
from support.hangup import wait_for_workers
from support.live_processes import workers_of
from support.raw_client import data_of, seed, tktkey
from support.standalone_program import fatal_line, run


@pytest.fixture
def in_background(idle: Daemon) -> Iterator[Daemon]:
    """Ends the daemon that a test started in the background, also when the test failed."""
    yield idle
    for process in idle.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # a child may go before its turn comes
            process.terminate()
    wait_for(lambda: not idle.processes(), "end of the daemon")


def test_in_the_background(in_background: Daemon) -> None:
    pid_file = in_background.state / "pid"
    result = run(in_background, "--daemon", "--pid-file", str(pid_file))
    assert result.returncode == 0, result
    path = result.stdout.rstrip("\n")
    assert path == str(in_background.directory / "private" / "tlsmgr")
    assert len(data_of(ask(path, seed(5)), b"seed")) == 5, "status 0 says that it serves"
    pid = int(pid_file.read_text())
    parent = psutil.Process(pid)
    assert parent in in_background.processes()
    assert {child.ppid() for child in in_background.processes() if child != parent} == {pid}
    assert os.getsid(pid) == pid != os.getsid(0)
    for stream in range(3):
        assert os.readlink(f"/proc/{pid}/fd/{stream}") == "/dev/null"
    began = time.monotonic()
    parent.terminate()
    wait_for(lambda: not in_background.processes(), "end of the daemon")
    assert time.monotonic() - began < 20
    assert not pid_file.exists()
    assert not os.path.lexists(path)


def test_a_log_that_nobody_reads_is_told_while_somebody_looks(in_background: Daemon) -> None:
    """Without a running Postfix there is no postlogd, which is what maillog_file asks for."""
    result = run(in_background, "--daemon", "-o", "maillog_file=/var/log/nobody.log")
    assert result.returncode == 0, result
    socket = in_background.directory / "public" / "postlog"
    line = f"warning: no log daemon listening on {socket}; messages are discarded\n"
    assert line in result.stderr


def test_a_start_in_the_background_that_fails_says_why(in_background: Daemon) -> None:
    pid_file = in_background.state / "pid"
    arguments = ["--daemon", "--pid-file", str(pid_file)]
    line = fatal_line(run(in_background, *arguments, "-o", "tls_random_bytes=many"))
    assert "tls_random_bytes" in line
    assert not pid_file.exists()
    assert in_background.processes() == []


def test_a_second_start_in_the_background_is_refused(in_background: Daemon) -> None:
    pid_file = in_background.state / "pid"
    assert run(in_background, "--daemon", "--pid-file", str(pid_file)).returncode == 0
    pid = pid_file.read_text()
    assert "is in use" in fatal_line(run(in_background, "--daemon", "--pid-file", str(pid_file)))
    assert pid_file.read_text() == pid
    os.kill(int(pid), signal.SIGTERM)


def test_a_failure_behind_the_fork_is_told_as_well(in_background: Daemon) -> None:
    """Here the memory for all processes can't be had, which is found out in the background."""
    sabotage = (
        "import sys, tlsmgr.daemon as d, tlsmgr.log as log\n"
        "def fail(conf):\n    raise log.Fatal('no memory to be had')\n"
        "d.setup.make_memory = fail\n"
        "from tlsmgr import standalone\nsys.exit(standalone.main())"
    )
    pid_file = in_background.state / "pid"
    result = subprocess.run(
        [sys.executable, "-c", sabotage, "--daemon", "--pid-file", str(pid_file)],
        env=in_background.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert fatal_line(result) == "no memory to be had"
    wait_for(lambda: not in_background.processes(), "end of the daemon")
    assert not pid_file.exists()
    assert not os.path.lexists(in_background.directory / "private" / "tlsmgr")


def test_an_interrupted_start_in_the_background_is_none(in_background: Daemon) -> None:
    """After ctrl-C before it serves there is no daemon."""
    sabotage = (
        "import sys, time\nfrom tlsmgr.processes import setup\n"
        "setup.make_context = lambda *_: time.sleep(60)\n"
        "from tlsmgr import standalone\nstandalone._forbid_dumps = lambda: None\n"
        "sys.exit(standalone.main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", sabotage, "--daemon", "-o", "tlsmgr_worker_processes=1"],
        env=in_background.environment(),
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: len(in_background.processes()) >= 3, "first process, parent and worker")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    wait_for(lambda: not in_background.processes(), "end of the daemon")
    assert not os.path.lexists(in_background.directory / "private" / "tlsmgr")


def test_a_pid_file_that_can_not_be_written(in_background: Daemon) -> None:
    path = str(in_background.state / "missing" / "pid")
    for arguments in ([], ["--daemon"]):
        line = fatal_line(run(in_background, *arguments, "--pid-file", path))
        assert line.startswith(f"cannot write {path}: ")
    wait_for(lambda: not in_background.processes(), "end of the daemon")
    assert not os.path.lexists(in_background.directory / "private" / "tlsmgr")


def test_a_pid_file_in_the_foreground(make_daemon: MakeDaemon, idle: Daemon) -> None:
    pid_file = idle.state / "pid"
    daemon = make_daemon("tlsmgr_worker_processes=1", arguments=("--pid-file", str(pid_file)))
    assert pid_file.read_text() == f"{daemon.pid}\n"
    assert daemon.stop() == 0
    assert not pid_file.exists()


def run_in_terminal(daemon: Daemon, *arguments: str) -> str:
    """Run the program in a terminal that is there for it alone; return its output."""
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, *PROGRAM, *arguments],
        env=daemon.environment(),
        stdin=terminal,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    output, _ = process.communicate(timeout=PATIENCE)
    os.close(controller)
    return output


def test_a_reload_in_the_background(in_background: Daemon) -> None:
    """The pid file and the socket stay, and go at the end. The terminal of the start has gone."""
    pid_file = in_background.state / "pid"
    output = run_in_terminal(in_background, "--daemon", "--pid-file", str(pid_file))
    path = output.rstrip("\n")
    key = data_of(ask(path, tktkey()), b"keybuf")
    pid = int(pid_file.read_text())
    status = pid_file.stat()
    for _ in range(2):
        before = {worker.pid for worker in workers_of(pid)}
        os.kill(pid, signal.SIGHUP)
        wait_for_workers(pid, before, len(os.sched_getaffinity(0)))
        assert data_of(ask(path, tktkey()), b"keybuf") == key
    assert int(pid_file.read_text()) == pid
    assert pid_file.stat() == status
    assert os.getsid(pid) == pid
    for stream in range(3):
        assert os.readlink(f"/proc/{pid}/fd/{stream}") == "/dev/null"
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not in_background.processes(), "end of the daemon")
    assert not pid_file.exists()
    assert not os.path.lexists(path)


def test_a_reload_before_it_serves_is_no_failed_start(in_background: Daemon) -> None:
    """The signal comes when the parent's loop begins, and the workers take their time."""
    sabotage = (
        "import os, signal, sys, time\nfrom tlsmgr.processes import setup, signals\n"
        "if 'TLSMGR_RELOAD' not in os.environ and '--check' not in sys.argv:\n"
        "    make, block = setup.make_context, signals.restore\n"
        "    setup.make_context = lambda *given: time.sleep(3) or make(*given)\n"
        "    def restore(mask):\n"
        "        signals.restore = block\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n        block(mask)\n"
        "    signals.restore = restore\n"
        "from tlsmgr import standalone\nsys.exit(standalone.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", sabotage, "--daemon", "-o", "tlsmgr_worker_processes=1"],
        env=in_background.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result
    path = result.stdout.rstrip("\n")
    assert path == str(in_background.directory / "private" / "tlsmgr")
    assert len(data_of(ask(path, seed(5)), b"seed")) == 5
