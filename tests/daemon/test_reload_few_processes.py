"""A reload where the system has no room for all new workers beside the old ones."""

from __future__ import annotations

from support.master_child import NEEDS_POSTFIX, PATIENCE, PROCESSES, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import Connection, expect_seed

pytestmark = NEEDS_POSTFIX

LIMITED = """
import errno, os
from tlsmgr import daemon
from tlsmgr.processes.children import Children

daemon.BRIDGE_TIME = 0.5
flag = os.path.join(os.path.dirname(__file__), "pids")

def old_ones():
    if not os.path.exists(flag):
        return []
    with open(flag) as file:
        return [pid for pid in file.read().split() if os.path.exists("/proc/" + pid)]

def spawn(self, name, *arguments, own=Children.spawn):
    if name == "worker" and old_ones() and any(child.name == "worker" for child in self):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return own(self, name, *arguments)

Children.spawn = spawn
"""


def test_old_workers_leave_when_one_new_one_serves() -> None:
    """The others are started when they have left; both sides waited for each other here."""
    with MasterChild(keeps_sockets=True, prelude=LIMITED) as child:
        child.wait_until_ready()
        flag = child.directory / "pids"
        flag.write_text(" ".join(str(worker.pid) for worker in child.workers()))
        child.reload()
        with Connection(str(child.socket)) as connection:
            expect_seed(connection, 32)
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        child.stop()
        assert child.texts("warning|error|fatal|panic") == [
            "warning: fork: Resource temporarily unavailable; will try again"
        ]
