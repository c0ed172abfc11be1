"""The servers that the measuring tool measures: found, started, or refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.daemon_process import Daemon, MakeDaemon, wait_for

from bench.servers import Server, ServerSpec, serving, start_of
from tlsmgr.log import Fatal


def test_all_processes_of_a_running_server_are_found(
    tmp_path: Path, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=3")
    with start_of(daemon.socket_path)(ServerSpec(daemon.socket_path, tmp_path, {})) as server:
        expected = {daemon.pid, *daemon.worker_pids()}
        assert len(expected) == 4
        wait_for(  # at times there is a sweep beside them
            lambda: {process.pid for process in server.processes()} == expected,
            f"just these processes: {expected}",
        )
        assert server.workers() == []  # not ours to kill
    assert daemon.is_running


def test_a_process_that_exits_meanwhile_is_left_out(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as passing:
        gone = psutil.Process(passing.pid)
    monkeypatch.setattr("bench.servers.family", lambda first: [gone, first])
    first = psutil.Process(daemon.pid)
    assert serving(daemon.socket_path, first) == [first]


def test_an_unknown_server_is_fatal() -> None:
    with pytest.raises(Fatal, match=r"^/nonexistent is no socket, no checkout .* ours, stock,"):
        start_of("/nonexistent")


def test_what_was_logged_and_stored(tmp_path: Path) -> None:
    lines = ["tlsmgr[1]: started", "tlsmgr[1]: warning: a", "tlsmgr[2]: fatal: b"]
    (tmp_path / "log").write_text("\n".join(lines))
    (tmp_path / "smtp_scache.sessions").write_bytes(bytes(8192))
    (tmp_path / "smtp_scache.sessions-lock").write_bytes(bytes(8192))
    server = Server("one", "", list, data=tmp_path, log=tmp_path / "log")
    assert server.complaints() == lines[1:]
    assert server.cache_bytes() == 512 * (tmp_path / "smtp_scache.sessions").stat().st_blocks > 0
    assert Server("none", "", list).complaints() == []
    assert Server("none", "", list).cache_bytes() == 0


def test_the_file_system_of_the_caches() -> None:
    assert Server("one", "", list, data=Path("/dev/shm")).file_system() == "tmpfs"
    assert Server("none", "", list).file_system() == ""
