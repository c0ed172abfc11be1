"""Starts with something missing: /dev/shm, an entropy source, the exchange file, a directory."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from pathlib import Path

import pytest
from support.daemon_clients import serve_on
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.egd_server import EgdServer, silent
from support.fault_table import FaultTable

pytestmark = pytest.mark.faults

SOON = 3.0  # seconds for a start, on a machine that is not busy

OWN_SHM = """
import ctypes, os, subprocess, sys
if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
    sys.exit("cannot have a mount namespace")
def run(*command):
    subprocess.run(command, check=True)
run("mount", "--make-rprivate", "/")
{change}
"""
SHM = {
    "full": """
run("mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "/dev/shm")
with open("/dev/shm/filler", "wb", 0) as file:
    try:
        while file.write(bytes(4096)): pass
    except OSError: pass
""",
    "read-only": 'run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/dev/shm")',
    "missing": """
run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
for name in ("null", "zero", "random", "urandom"):
    open("/mnt/" + name, "w").close()
    run("mount", "--bind", "/dev/" + name, "/mnt/" + name)
run("mount", "--rbind", "/mnt", "/dev")
""",
}


@pytest.mark.parametrize("state", SHM)
def test_shared_memory(make_daemon: MakeDaemon, faults: FaultTable, state: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a mount namespace")
    daemon = make_daemon(
        "tlsmgr_worker_processes=2", sabotage=OWN_SHM.format(change=SHM[state]), start=False
    )
    daemon.launch()
    wait_for(lambda: daemon.log() or not daemon.is_running, "start")
    if "cannot have a mount namespace" in daemon.log():
        pytest.skip("cannot have a mount namespace")
    daemon.wait_until_ready()
    with faults.under_load(daemon, f"/dev/shm {state} at the start") as load:
        daemon.workers()[0].kill()
        wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")
        time.sleep(0.3)
    assert (load.lost, load.failed, load.refused) == (0, [], [])
    assert sum("shared memory" in line or "semaphore" in line for line in daemon.lines()) == 1


def serves_soon(daemon: Daemon, faults: FaultTable, fault: str) -> None:
    """Start it, and run the load; neither takes notice."""
    began = time.monotonic()
    daemon.start()
    took = time.monotonic() - began
    with faults.under_load(daemon, fault) as load:
        load.remark = f"start took {took:.2f} s"
        time.sleep(1.2)
    assert took < 3 * SOON
    assert (load.lost, load.failed, load.broken, load.refused) == (0, [], [], [])


def test_a_silent_fifo(make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path) -> None:
    """An entropy source that nobody writes to."""
    os.mkfifo(tmp_path / "fifo")
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        f"tls_random_source=dev:{tmp_path}/fifo",
        "tls_random_reseed_period=1",
        start=False,
    )
    serves_soon(daemon, faults, "entropy source: FIFO without a writer")


def test_a_silent_egd(make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path) -> None:
    with EgdServer(tmp_path / "egd", silent):
        daemon = make_daemon(
            "tlsmgr_worker_processes=2",
            f"tls_random_source=egd:{tmp_path}/egd",
            "tls_random_reseed_period=1",
            start=False,
        )
        serves_soon(daemon, faults, "entropy source: silent EGD server")
        assert daemon.stop() == 0


def test_a_locked_exchange_file(
    make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path
) -> None:
    path = tmp_path / "prng_exch"
    path.write_bytes(bytes(1024))
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        daemon = make_daemon(
            "tlsmgr_worker_processes=2",
            f"tls_random_exchange_name={path}",
            "tls_random_prng_update_period=1",
            start=False,
        )
        serves_soon(daemon, faults, "exchange file locked by another process")


NOBODY = 65534
AS_NOBODY = f"""
import os
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
from tlsmgr.processes import filewatch
filewatch.RETRY_INTERVAL = 0.2
"""


def test_a_directory_of_another_owner(
    make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path
) -> None:
    """One warning for each file, then quiet; they are made when the owner is right."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user")
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=AS_NOBODY, start=False)
    os.chown(daemon.state, NOBODY, NOBODY)
    own = daemon.state / "tlsmgr"
    own.mkdir(mode=0o700)
    os.chown(own, NOBODY, NOBODY)
    place = own / "data"
    place.mkdir(mode=0o755)
    skip_unless_readable(Path(__file__))
    daemon.arguments += ["-o", f"data_directory={place}"]
    daemon.start()
    with faults.under_load(daemon, "data_directory of another owner") as load:
        time.sleep(1.5)
        warnings = [line for line in daemon.lines() if "cannot make" in line]
        assert len(warnings) == 3, "one for each cache"
        os.chown(place, NOBODY, NOBODY)
        daemon.wait_for_log("smtp_scache.sessions could be made")
        wait_for(lambda: all(serve_on(daemon, n) for n in range(20)), "sessions")
    # Until it is replaced, a worker does not have the files, and does not claim to store.
    refused = [reply for reply in load.refused if not reply.startswith("update")]
    assert (load.failed, refused, load.stale) == ([], [], 0)


def skip_unless_readable(path: Path) -> None:
    """Skip the test where another user can't read the program."""
    for directory in path.parents:
        if not directory.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"another user can't pass through {directory}")
