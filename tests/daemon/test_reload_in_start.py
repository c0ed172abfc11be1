"""A reload while the successor of the last one has no worker yet: what went over goes on."""

from __future__ import annotations

from support.daemon_clients import ask
from support.master_child import NEEDS_POSTFIX, PATIENCE, PROCESSES, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import OK, Connection, data_of, expect_seed, found, lookup, tktkey, update

pytestmark = NEEDS_POSTFIX

SLOW = """
import os, time
from tlsmgr.processes import worker_start

flag = os.path.join(os.path.dirname(__file__), "flag")

def boot(*arguments, own=worker_start._boot):
    while os.path.exists(flag):
        time.sleep(0.01)
    return own(*arguments)

worker_start._boot = boot
"""


def test_keys_and_sessions_are_those_from_before() -> None:
    """Old workers accept clients at that time; the message to the next one is not for them."""
    with MasterChild(keeps_sockets=True, prelude=SLOW) as child:
        flag = child.directory / "flag"
        child.wait_until_ready()
        path = str(child.socket)
        key = data_of(ask(path, tktkey()), b"keybuf")
        with Connection(path) as stays:
            assert stays.ask(update(b"smtp", b"id", b"session")) == OK
            flag.touch()
            child.hang_up()
            assert child.wait() == 0
            child.start()
            wait_until(lambda: child.texts("took over"), PATIENCE)
            assert data_of(ask(path, tktkey()), b"keybuf") == key
            child.hang_up()
            assert child.wait() == 0
            flag.unlink()
            child.start_successor()
            expect_seed(stays, 32)
        assert len(child.texts("took over")) == 2
        assert data_of(ask(path, tktkey()), b"keybuf") == key
        assert ask(path, lookup(b"smtp", b"id")) == found(b"session")
        wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
        child.stop()
        assert child.texts("warning|error|fatal|panic") == []
