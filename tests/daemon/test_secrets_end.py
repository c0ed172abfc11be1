"""No secret outlives the daemon: no core file, and the shared memory is overwritten at the end."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import psutil
import pytest
from support.daemon_process import Daemon, MakeDaemon
from support.raw_client import OK, Connection, data_of, tktkey, update

AT_EXIT = """
import atexit, os
from tlsmgr import shm
made, parent = [], os.getpid()
make = shm.SharedMemory.__init__
def noting(memory, size):
    make(memory, size)
    made.append(memory)
shm.SharedMemory.__init__ = noting
@atexit.register
def report():
    if os.getpid() == parent:
        with open({path!r}, "w") as file:
            file.write(" ".join(str(sum(map(bool, bytes(memory._bytes)))) for memory in made))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_shared_memory_is_overwritten(
    make_daemon: MakeDaemon, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "left"
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=AT_EXIT.format(path=str(path)))
    with Connection(daemon.socket_path) as connection:
        assert len(data_of(connection.ask(tktkey()), b"keybuf")) == 88
        assert connection.ask(update(b"smtp", b"id", b"session")) == OK
    assert daemon.stop(number) == 0
    assert path.read_text() == "0", "bytes that are not zero, in one piece of shared memory"


def test_there_are_no_core_files(daemon: Daemon) -> None:
    parent = psutil.Process(daemon.pid)
    processes = [parent, *parent.children()]
    assert len(processes) == 5
    for process in processes:
        assert process.rlimit(resource.RLIMIT_CORE)[0] == 0
