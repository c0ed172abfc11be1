"""SIGHUP with a start that would fail: one line says why, and the daemon goes on as it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.daemon_clients import ask, ask_all
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.hangup import ANYWHERE, refusal, reload, starts_of
from support.raw_client import OK, data_of, found, lookup, policy, policy_is, tktkey, update
from support.settled_files import write_settled
from support.standalone_program import fatal_line, run

ONE = "tlsmgr_worker_processes=1"
SHORT_TRIAL = "from tlsmgr.processes import trial; trial.TRIAL_TIME = 0.5"
OFTEN = "from tlsmgr.processes import trial; trial.LOOK_INTERVAL = 0.01"
BROKEN = """
import os, sys
if os.path.exists({flag!r}) and "--check" in sys.argv:
    {act}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """One with configuration files that are good."""
    write_settled(tmp_path / "main.cf", "smtp_tls_session_cache_timeout = 10m\n")
    write_settled(tmp_path / "tlsmgr.cf", f"{ONE}\n")
    return tmp_path


def expect_reload(daemon: Daemon, key: bytes) -> None:
    """It can still be reloaded, and has the key that it had."""
    reload(daemon)
    assert data_of(ask(daemon.socket_path, tktkey()), b"keybuf") == key


def test_a_mistake_in_main_cf(make_daemon: MakeDaemon, directory: Path) -> None:
    """The reason is that of a start."""
    daemon = make_daemon(arguments=("-c", str(directory)))
    key = data_of(ask(daemon.socket_path, tktkey()), b"keybuf")
    write_settled(directory / "main.cf", "smtp_tls_session_cache_timeout = 10x\n")
    reason = refusal(daemon)
    assert reason == fatal_line(run(daemon, "-c", str(directory), "--check"))
    assert "smtp_tls_session_cache_timeout" in reason
    assert ask(daemon.socket_path, policy(b"smtp")) == policy_is(0, 600)
    assert data_of(ask(daemon.socket_path, tktkey()), b"keybuf") == key
    write_settled(directory / "main.cf", "smtp_tls_session_cache_timeout = 20m\n")
    expect_reload(daemon, key)
    assert ask(daemon.socket_path, policy(b"smtp")) == policy_is(0, 1200)


@pytest.mark.parametrize("name", ["queue_directory", "data_directory"])
def test_a_place_that_changes(make_daemon: MakeDaemon, directory: Path, name: str) -> None:
    daemon = make_daemon(arguments=("-c", str(directory)))
    write_settled(directory / "main.cf", f"{name} = {directory}/other\n")
    assert refusal(daemon) == (
        "queue_directory or data_directory was changed, which needs a restart"
    )
    assert not (directory / "other").exists()
    ask_all(daemon, 3)


def test_a_trial_has_its_time(make_daemon: MakeDaemon, directory: Path) -> None:
    """However often the parent looks meanwhile."""
    daemon = make_daemon(arguments=("-c", str(directory)), sabotage=OFTEN)
    key = data_of(ask(daemon.socket_path, tktkey()), b"keybuf")
    expect_reload(daemon, key)
    assert "cannot reload" not in daemon.log()


def test_a_trial_that_hangs(make_daemon: MakeDaemon, directory: Path) -> None:
    """As on a file system that does not respond. A signal meanwhile has another one follow."""
    daemon = make_daemon(arguments=("-c", str(directory)), sabotage=SHORT_TRIAL)
    key = data_of(ask(daemon.socket_path, tktkey()), b"keybuf")
    (directory / "main.cf").unlink()
    os.mkfifo(directory / "main.cf")
    assert refusal(daemon) == "a trial did not end within 0.5 seconds"
    start = len(daemon.log())
    daemon.send(signal.SIGHUP)
    wait_for(lambda: len(daemon.processes()) > 4, "a trial")
    daemon.send(signal.SIGHUP)
    wait_for(lambda: len([x for x in daemon.lines(start) if x.startswith("error")]) == 2, "two")
    wait_for(lambda: len(daemon.processes()) == 4, "the end of the trials")
    ask_all(daemon, 3)
    (directory / "main.cf").unlink()
    expect_reload(daemon, key)


def test_an_end_while_a_trial_hangs(make_daemon: MakeDaemon, directory: Path) -> None:
    daemon = make_daemon(arguments=("-c", str(directory)))
    (directory / "main.cf").unlink()
    os.mkfifo(directory / "main.cf")
    daemon.send(signal.SIGHUP)
    wait_for(lambda: len(daemon.processes()) > 4, "a trial")
    assert daemon.stop() == 0
    assert starts_of(daemon) == 1


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("raise ImportError('no lmdb')", "ImportError: no lmdb"),
        ("os.kill(os.getpid(), 11)", "a trial ended: killed by signal 11"),
        ("os._exit(7)", "a trial ended: exit status 7"),
        ("os.execv(sys.executable, ['python', '-c', 'print(5)'])", "which needs a restart"),
    ],
)
def test_a_broken_program(make_daemon: MakeDaemon, tmp_path: Path, act: str, reason: str) -> None:
    flag = tmp_path / "flag"
    daemon = make_daemon(ONE, sabotage=BROKEN.format(flag=str(flag), act=act))
    key = data_of(ask(daemon.socket_path, tktkey()), b"keybuf")
    flag.touch()
    assert reason in refusal(daemon)
    flag.unlink()
    expect_reload(daemon, key)


def test_the_directory_of_the_start_has_gone(
    make_daemon: MakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    daemon = make_daemon(ONE, sabotage=ANYWHERE)
    monkeypatch.undo()
    gone.rmdir()
    assert refusal(daemon).endswith(f" in {gone}: No such file or directory")
    ask_all(daemon, 3)


def test_what_breaks_between_the_trial_and_the_start(
    make_daemon: MakeDaemon, directory: Path
) -> None:
    """The service ends, as at a start that fails: with one line, and without its socket."""
    cut = (
        "from tlsmgr import reexec\nrun_again = reexec.run_again\n"
        f"def cut(*given):\n    with open({str(directory / 'main.cf')!r}, 'w') as file:\n"
        "        file.write('ipc_timeout = x')\n"
        "    run_again(*given)\nreexec.run_again = cut"
    )
    daemon = make_daemon(arguments=("-c", str(directory)), sabotage=cut)
    daemon.send(signal.SIGHUP)
    assert daemon.wait() == 1
    (line,) = [line for line in daemon.lines() if line.startswith("fatal: ")]
    assert "ipc_timeout" in line
    assert not os.path.lexists(daemon.socket_path)


def test_a_variable_of_another_process_is_ignored(idle: Daemon) -> None:
    os.environ["TLSMGR_RELOAD"] = f"[{os.getpid()}, [0], 1, 2, [1], true]"
    try:
        idle.start()
        assert ask(idle.socket_path, update(b"smtp", b"id", b"1")) == OK
        reload(idle)
        assert ask(idle.socket_path, lookup(b"smtp", b"id")) == found(b"1")
    finally:
        del os.environ["TLSMGR_RELOAD"]


# --------------------------------------------------------------------------------------- --check


def test_check_says_what_a_start_would_use(idle: Daemon) -> None:
    """It makes nothing, and succeeds beside the daemon that it is about."""
    result = run(idle, "--check")
    assert result.returncode == 0
    assert result.stdout == (
        f"socket {idle.directory}/private/tlsmgr\ndata_directory {idle.directory}\n"
    )
    assert not idle.directory.exists()
    idle.start()
    wait_for((idle.directory / "prng_exch").exists, "its last file")
    files = sorted(idle.directory.rglob("*"))
    again = run(idle, "--check")
    assert (again.returncode, again.stdout) == (0, result.stdout)
    assert sorted(idle.directory.rglob("*")) == files
    ask_all(idle, 3)


def test_check_finds_what_stops_a_start(idle: Daemon) -> None:
    """What only the disk shows as well, where there is a data directory."""
    idle.directory.mkdir(mode=0o700)
    same = "smtpd_tls_session_cache_database=btree:${data_directory}/smtp_scache"
    for bad in ("tls_random_bytes=many", "smtp_tls_session_cache_timeout=10x", "=", same):
        line = fatal_line(run(idle, "--check", "-o", bad))
        assert line == fatal_line(run(idle, "-o", bad)), bad
