"""The daemon as a person starts it: options, defaults, sockets that are in the way, background."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import MakeDaemon
from daemon_process import PATIENCE, Daemon, wait_for
from raw_client import Connection, data_of, policy, seed

from tlsmgr import standalone

ROOT = Path(__file__).parent.parent
CACHABLE = b"status\x000\0cachable\x001\0timeout\x00%d\0\0"
NOT_CACHABLE = b"status\x000\0cachable\x000\0timeout\x00%d\0\0"


def run(daemon: Daemon, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in the daemon's environment until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "tlsmgr.standalone", *arguments],
        env={**daemon.environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture
def idle(make_daemon: MakeDaemon) -> Daemon:
    """A daemon that was not started: its directory and environment are of use."""
    return make_daemon(start=False)


def fatal_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why there was no start."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if "fatal: " in line]
    assert "Traceback" not in result.stderr
    return line.partition("fatal: ")[2]


def ask(path: str, request: bytes) -> bytes:
    with Connection(path) as connection:
        return connection.ask(request)


# ---------------------------------------------------------------------------------------- defaults


def test_defaults(make_daemon: MakeDaemon) -> None:
    before = os.umask(0)
    try:
        daemon = make_daemon()
    finally:
        os.umask(before)
    assert daemon.socket_path == f"{daemon.state}/tlsmgr/private/tlsmgr"
    for path in (daemon.directory, daemon.directory / "private"):
        assert path.stat().st_mode & 0o7777 == 0o700
    for path in daemon.directory.iterdir():
        assert path.is_dir() or path.stat().st_mode & 0o7777 == 0o600, path
    for cache_type in (b"smtpd", b"smtp", b"lmtp"):
        assert ask(daemon.socket_path, policy(cache_type)) == CACHABLE % 3600
        assert (daemon.directory / f"{cache_type.decode()}_scache.sessions").exists()
    assert len(daemon.workers()) == len(os.sched_getaffinity(0))
    assert not [line for line in daemon.lines() if "warning" in line or "error" in line]


@pytest.mark.parametrize(
    ("base", "expected"),
    [("/abs", "/abs/tlsmgr"), ("", "/h/.local/state/tlsmgr"), ("rel", "/h/.local/state/tlsmgr")],
)
def test_where_the_state_is(monkeypatch: pytest.MonkeyPatch, base: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert standalone.state_directory({"XDG_STATE_HOME": base}) == expected


def test_without_an_xdg_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert standalone.state_directory({}) == "/h/.local/state/tlsmgr"


def test_a_second_start_finds_the_state_of_the_first(make_daemon: MakeDaemon) -> None:
    first = make_daemon("tlsmgr_worker_processes=1")
    assert first.stop() == 0
    second = make_daemon("tlsmgr_worker_processes=1", state=str(first.state))
    assert second.socket_path == first.socket_path
    assert ask(second.socket_path, policy(b"smtp")) == CACHABLE % 3600
    assert not [line for line in second.lines() if "warning" in line]


# ----------------------------------------------------------------------------------------- options


def test_overrides(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=1",
        "smtp_tls_session_cache_timeout=200",
        "smtp_tls_session_cache_timeout=300s",
        "lmtp_tls_session_cache_database=",
        "tlsmgr_worker_processes = 3",
    )
    assert len(daemon.workers()) == 3, "the last one wins"
    assert ask(daemon.socket_path, policy(b"smtp")) == CACHABLE % 300
    assert ask(daemon.socket_path, policy(b"lmtp")) == NOT_CACHABLE % 3600


@pytest.mark.parametrize("override", ["no_equals_sign", "=value", ""])
def test_an_override_that_is_none(idle: Daemon, override: str) -> None:
    assert override in fatal_line(run(idle, "-o", override))


@pytest.mark.parametrize(
    "override",
    [
        "tlsmgr_worker_processes=many",
        "tlsmgr_worker_processes=-1",
        "tlsmgr_worker_processes=513",
        "smtp_tls_session_cache_timeout=8640001",
        "smtp_tls_session_cache_size_limit=1",
        "tlsmgr_session_encryption=perhaps",
        "ipc_timeout=0",
    ],
)
def test_a_value_that_is_none(idle: Daemon, override: str) -> None:
    assert override.partition("=")[0] in fatal_line(run(idle, "-o", override))
    assert not (idle.directory / "private" / "tlsmgr").exists()


def test_a_directory_with_main_cf_and_tlsmgr_cf(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text(
        "smtp_tls_session_cache_database = btree:${data_directory}/smtp\n"
        "smtp_tls_session_cache_timeout = 10m\n"
    )
    (tmp_path / "tlsmgr.cf").write_text("tlsmgr_worker_processes = 3\n")
    daemon = make_daemon(arguments=("-c", os.path.relpath(tmp_path)))
    assert len(daemon.workers()) == 3
    assert ask(daemon.socket_path, policy(b"smtp")) == CACHABLE % 600
    assert ask(daemon.socket_path, policy(b"smtpd")) == NOT_CACHABLE % 3600
    assert (daemon.directory / "smtp.sessions").exists()
    assert daemon.socket_path == str(daemon.directory / "private" / "tlsmgr")


def test_a_directory_with_tlsmgr_cf_alone(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "tlsmgr.cf").write_text("tlsmgr_worker_processes = 1\n")
    daemon = make_daemon("tlsmgr_worker_processes=2", arguments=("-c", str(tmp_path)))
    assert len(daemon.workers()) == 2, "-o goes before the file"
    assert ask(daemon.socket_path, policy(b"lmtp")) == CACHABLE % 3600


def test_an_empty_directory(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", arguments=("-c", str(tmp_path)))
    assert ask(daemon.socket_path, policy(b"lmtp")) == CACHABLE % 3600


def test_directories_that_main_cf_names(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text(
        f"queue_directory = {tmp_path}/queue\ndata_directory = {tmp_path}/data\n"
        "smtpd_tls_session_cache_database = btree:${data_directory}/smtpd\n"
    )
    daemon = make_daemon(arguments=("-c", str(tmp_path)))
    assert daemon.socket_path == f"{tmp_path}/queue/private/tlsmgr"
    assert (tmp_path / "data" / "smtpd.sessions").exists()
    assert not daemon.directory.exists()


def test_no_directory(idle: Daemon, tmp_path: Path) -> None:
    assert fatal_line(run(idle, "-c", str(tmp_path / "missing"))).endswith("not a directory")
    (tmp_path / "file").write_text("")
    assert fatal_line(run(idle, "-c", str(tmp_path / "file"))).endswith("not a directory")


def test_a_slip_in_main_cf(idle: Daemon, tmp_path: Path) -> None:
    (tmp_path / "main.cf").write_text("smtp_tls_session_cache_timeout = 10x\n")
    assert "smtp_tls_session_cache_timeout" in fatal_line(run(idle, "-c", str(tmp_path)))


def test_state_that_can_not_be_made(idle: Daemon) -> None:
    blocked = idle.state / "file"
    blocked.write_text("")
    assert f"{blocked}/tlsmgr" in fatal_line(run(idle, XDG_STATE_HOME=str(blocked)))


def test_help(idle: Daemon) -> None:
    result = run(idle, "--help")
    assert result.returncode == 0
    for option in ("-c DIR", "-o name=value", "--socket PATH", "--daemon", "--pid-file PATH"):
        assert option in result.stdout
    assert list(idle.state.glob("tlsmgr*")) == []


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["-o"], ["surplus"]])
def test_a_mistake_on_the_command_line(idle: Daemon, arguments: list[str]) -> None:
    result = run(idle, *arguments)
    assert result.returncode == 64
    assert "usage: " in result.stderr


# ------------------------------------------------------------------------------------------ socket


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


# -------------------------------------------------------------------------------------- background


@pytest.fixture
def in_background(idle: Daemon) -> Iterator[Daemon]:
    """Ends what was started in the background, whatever the test did."""
    yield idle
    for process in idle.processes():
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


def test_a_start_in_the_background_that_fails_says_why(in_background: Daemon) -> None:
    pid_file = in_background.state / "pid"
    arguments = ["--daemon", "--pid-file", str(pid_file)]
    line = fatal_line(run(in_background, *arguments, "-o", "tlsmgr_worker_processes=many"))
    assert "tlsmgr_worker_processes" in line
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
        "d.share_memory = fail\n"
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
    """Who presses ctrl-C before it serves gets no daemon."""
    sabotage = (
        "import sys, time\nfrom tlsmgr.processes import boot\n"
        "boot.make_context = lambda heritage, slot: time.sleep(60)\n"
        "from tlsmgr import standalone\nsys.exit(standalone.main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", sabotage, "--daemon", "-o", "tlsmgr_worker_processes=1"],
        env=in_background.environment(),
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: len(in_background.processes()) == 3, "first process, parent and worker")
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


# --------------------------------------------------------------------------------------------- end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start(make_daemon: MakeDaemon, number: signal.Signals) -> None:
    """It may come at any moment: the start ends in order, and nothing is left."""
    for step in range(12):
        daemon = make_daemon("tlsmgr_worker_processes=2", start=False)
        daemon.launch()
        path = daemon.directory / "private" / "tlsmgr"
        wait_for(lambda p=path: os.path.lexists(p), "the socket")  # type: ignore[misc]
        time.sleep(step * 0.02)
        daemon.send(number)
        assert daemon.wait() == 0, (step, daemon.log())
        assert not os.path.lexists(path), step
        assert "Traceback" not in daemon.log()


def test_nobody_needs_to_read_the_path(idle: Daemon) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "tlsmgr.standalone", "-o", "tlsmgr_worker_processes=1"],
        env=idle.environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    path = str(idle.directory / "private" / "tlsmgr")
    wait_for(lambda: os.path.lexists(path), "the socket")
    assert len(data_of(ask(path, seed(5)), b"seed")) == 5
    assert process.poll() is None
    process.terminate()
    _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, words
    assert b"Traceback" not in words


def test_the_script(idle: Daemon) -> None:
    """scripts/tlsmgr-start, twice. The first run may have to install something."""
    for _ in range(2):
        process = subprocess.Popen(
            [ROOT / "scripts" / "tlsmgr-start", "-o", "tlsmgr_worker_processes=1"],
            env=idle.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        path = process.stdout.readline().rstrip("\n")
        try:
            assert len(data_of(ask(path, seed(5)), b"seed")) == 5
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert not os.path.lexists(path)
