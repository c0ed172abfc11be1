"""The standalone daemon's socket: its path, files that are there already, its owner."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.daemon_process import PATIENCE, Daemon, MakeDaemon, wait_for
from support.raw_client import data_of, policy, policy_is, seed
from support.standalone_program import fatal_line, run


def test_another_socket(make_daemon: MakeDaemon, idle: Daemon) -> None:
    path = idle.state / "a" / "b" / "socket"
    relative = os.path.relpath(path)
    daemon = make_daemon("tlsmgr_worker_processes=1", arguments=("--socket", relative))
    assert daemon.socket_path == str(path)
    assert len(data_of(ask(str(path), seed(5)), b"seed")) == 5
    assert daemon.stop() == 0
    assert not path.exists()


def test_a_stale_socket_is_replaced(make_daemon: MakeDaemon, idle: Daemon) -> None:
    path = str(idle.state / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(path)
        stale.listen()
    assert os.path.lexists(path)
    daemon = make_daemon("tlsmgr_worker_processes=1", arguments=("--socket", path))
    assert len(data_of(ask(daemon.socket_path, seed(5)), b"seed")) == 5


def test_the_socket_of_a_daemon_that_was_killed_is_replaced(make_daemon: MakeDaemon) -> None:
    first = make_daemon("tlsmgr_worker_processes=1")
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert os.path.lexists(first.socket_path)
    wait_for(lambda: not first.processes(), "end of its workers")
    second = make_daemon("tlsmgr_worker_processes=1", state=str(first.state))
    assert len(data_of(ask(second.socket_path, seed(5)), b"seed")) == 5
    assert not [line for line in second.lines() if "warning" in line]


def test_a_live_socket_is_refused(make_daemon: MakeDaemon) -> None:
    first = make_daemon("tlsmgr_worker_processes=1")
    line = fatal_line(run(first))
    assert line == f"{first.socket_path} is in use: another tlsmgr serves there"
    assert len(data_of(ask(first.socket_path, seed(5)), b"seed")) == 5
    assert first.stop() == 0


def test_a_second_daemon_with_the_data_directory_of_the_first_is_refused(
    make_daemon: MakeDaemon,
) -> None:
    first = make_daemon("tlsmgr_worker_processes=1")
    line = fatal_line(run(first, "--socket", str(first.state / "socket")))
    assert line == (
        f"another tlsmgr uses {first.directory}; -o data_directory=DIR gives this one its own"
    )
    assert not (first.state / "socket").exists()
    other = f"data_directory={first.state}/other"
    second = make_daemon(other, arguments=("--socket", str(first.state / "second")))
    assert ask(second.socket_path, policy(b"smtp")) == policy_is(1, 3600)


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as a user who may not enter a directory")
def test_a_directory_that_may_not_be_entered_is_one_line(idle: Daemon) -> None:
    closed = idle.state / "closed"
    closed.mkdir(mode=0o700)
    (closed / "socket").write_text("")
    idle.state.chmod(0o777)
    become_nobody = "import os; os.setgid(65534); os.setuid(65534); "
    serve = "import sys; from tlsmgr import standalone; sys.exit(standalone.main())"
    result = subprocess.run(
        [sys.executable, "-c", become_nobody + serve, "--socket", f"{closed}/socket"],
        env={**idle.environment(), "XDG_STATE_HOME": str(idle.state / "nobodys")},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert fatal_line(result) == f"cannot open directory {closed}: Permission denied"


def test_the_memory_of_the_daemon_is_not_dumped(idle: Daemon) -> None:
    """Not to a core file, nor to a debugger of the same user."""
    sabotage = (
        "import ctypes, sys, tlsmgr.daemon as d, tlsmgr.log as log\n"
        "def report(*_):\n    dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "    raise log.Fatal(f'dumpable {dumpable}')\n"
        "d.serve = report\nfrom tlsmgr import standalone\nsys.exit(standalone.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", sabotage],
        env=idle.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert fatal_line(result) == "dumpable 0"


def test_a_live_socket_with_a_full_backlog_is_refused(idle: Daemon) -> None:
    path = str(idle.state / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(path)
        busy.listen(0)
        clients = []
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                clients.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                clients[-1].setblocking(False)
                clients[-1].connect(path)
        assert path in fatal_line(run(idle, "--socket", path))
        assert os.path.lexists(path)
        for client in clients:
            client.close()


@pytest.mark.parametrize("what", ["file", "directory", "dangling link"])
def test_what_is_no_socket_is_refused(idle: Daemon, what: str) -> None:
    path = idle.state / "socket"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    line = fatal_line(run(idle, "--socket", str(path)))
    assert line == f"{path} exists and is not a socket"
    assert os.path.lexists(path)


def test_a_path_that_is_too_long(idle: Daemon) -> None:
    path = f"{idle.state}/{'x' * (108 - len(str(idle.state)))}"
    assert fatal_line(run(idle, "--socket", path)).startswith("socket path over 107 bytes")


def test_a_socket_file_that_is_not_ours_any_more_is_left(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1")
    path = Path(daemon.socket_path)
    path.unlink()
    path.write_text("somebody else's")
    daemon.socket_path = ""
    assert daemon.stop() == 0
    assert path.read_text() == "somebody else's"
