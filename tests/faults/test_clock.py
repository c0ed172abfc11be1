"""The clock steps by a year, back and forth, under load."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

import pytest
from support.daemon_process import MakeDaemon
from support.fault_table import FaultTable
from support.raw_client import OK, Connection, data_of, found, lookup, tktkey, update

pytestmark = pytest.mark.faults

YEAR = 365 * 86400
SHIFTED = """
import mmap, struct, time
with open({path!r}, "r+b") as file:
    shift = mmap.mmap(file.fileno(), 8)
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + struct.unpack("=q", shift[:8])[0]
time.time_ns = lambda: real_ns() + struct.unpack("=q", shift[:8])[0] * 1_000_000_000
"""


def test_clock_steps(make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path) -> None:
    path = tmp_path / "shift"
    path.write_bytes(bytes(8))
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=SHIFTED.format(path=str(path)))
    workers = daemon.worker_pids()
    names = []
    with (
        open(path, "r+b") as file,
        mmap.mmap(file.fileno(), 8) as shift,
        faults.under_load(daemon, "clock steps by a year") as load,
    ):
        for number, step in enumerate((YEAR, 0, -YEAR, 0, YEAR, -YEAR, 0)):
            shift[:8] = struct.pack("=q", step)
            with Connection(daemon.socket_path) as connection:
                name = b"step %d" % number
                assert connection.ask(update(b"smtp", name, b"session")) == OK
                assert connection.ask(lookup(b"smtp", name)) == found(b"session")
                key = data_of(connection.ask(tktkey()), b"keybuf")
                assert data_of(connection.ask(tktkey(key[:16])), b"keybuf") == key
                now, (tout,) = time.time() + step, struct.unpack("=q", key[80:])
                assert now < tout <= now + 3600, "the key is not of another time"
                names.append(key[:16])
            time.sleep(0.2)
    assert len(set(names)) == len(names), "a key of the future is not used before its time"
    assert daemon.worker_pids() == workers
    assert (load.failed, load.broken, load.refused) == ([], [], [])
