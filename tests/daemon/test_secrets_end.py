"""No secret outlives the daemon: no core file, and the shared memory is overwritten at the end."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import psutil
import pytest
from support.daemon_process import Daemon, MakeDaemon
from support.hangup import reload
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


MESSAGES_AT_EXIT = """
import atexit, gc, os
from tlsmgr.processes import handover
parent = os.getpid()
@atexit.register
def report():
    if os.getpid() == parent:
        with open({path!r}, "w") as file:
            file.write(str(sum(isinstance(o, handover.Message) for o in gc.get_objects())))
"""


def test_what_was_handed_over_is_not_kept(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """The keys in the message go on in shared memory, until they expire; nowhere else."""
    path = tmp_path / "left"
    sabotage = MESSAGES_AT_EXIT.format(path=str(path))
    daemon = make_daemon("tlsmgr_worker_processes=1", sabotage=sabotage)
    with Connection(daemon.socket_path) as connection:
        key = data_of(connection.ask(tktkey()), b"keybuf")
    reload(daemon)
    daemon.wait_for_log("took over from process")
    with Connection(daemon.socket_path) as connection:
        assert data_of(connection.ask(tktkey()), b"keybuf") == key
    assert daemon.stop() == 0
    assert path.read_text() == "0"


def test_there_are_no_core_files(daemon: Daemon) -> None:
    parent = psutil.Process(daemon.pid)
    processes = [parent, *parent.children()]
    assert len(processes) == 5
    for process in processes:
        assert process.rlimit(resource.RLIMIT_CORE)[0] == 0
