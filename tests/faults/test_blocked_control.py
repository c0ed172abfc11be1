"""An operator's command that a file system blocks: the control socket answers all others."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from support.control_client import ControlConnection, ask, data_of, status_of
from support.daemon_clients import serves
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.frozen_disk import disk
from support.live_processes import named
from support.raw_client import OK, Connection, update

pytestmark = pytest.mark.faults

SOON = 5.0  # seconds until the socket answers again: 1.5 until a process counts as stalled
BLOCKED = "a file system does not respond; sessions are not cached"


def answers(daemon: Daemon) -> bool:
    """Whether a client that asks now gets the status, with the reason."""
    try:
        with ControlConnection(daemon.socket_path) as connection:
            connection.send(b"status\n")
            connection.socket.settimeout(0.2)
            return BLOCKED in connection.read_to_end().decode()
    except OSError:
        return False


def control_processes(daemon: Daemon) -> int:
    return len(named(daemon.pid, "tlsmgr-control"))


def test_a_drop_on_a_frozen_file_system(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    with disk(tmp_path) as frozen:
        daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={frozen.path}")
        with Connection(daemon.socket_path) as connection:
            for number in range(5):
                assert connection.ask(update(b"smtp", b"%d" % number, b"session")) == OK
        with contextlib.ExitStack() as stack:  # no other client: it could hold the writers' lock
            stack.callback(frozen.thaw)
            frozen.freeze()
            operator = stack.enter_context(ControlConnection(daemon.socket_path))
            operator.send(b"drop smtp match=4\n")
            began = time.monotonic()
            wait_for(lambda: answers(daemon), "a status")
            took = time.monotonic() - began
            print(f"the control socket answered after {took:.2f} s")
            assert took < SOON
            assert control_processes(daemon) == 2
            assert serves(daemon)
            (refusal,) = ask(daemon.socket_path, "list smtp")
            assert refusal == "error a file system does not respond; try again when it does"
            assert len(data_of(daemon.socket_path, "rotate")) == 1
            frozen.thaw()
            reply = operator.read_to_end().decode().splitlines()
            assert reply[-1] == "ok" or reply[-1] == refusal
        wait_for(lambda: control_processes(daemon) == 1, "the end of the substitute")
        wait_for(lambda: status_of(daemon.socket_path)["state"] == "serving", "service as ever")
        assert len(data_of(daemon.socket_path, "list smtp match=3")) >= 1
