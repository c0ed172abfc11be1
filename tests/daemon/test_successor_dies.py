"""A successor that is killed while it takes over: the next one serves, and says with which keys."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.master_child import NEEDS_POSTFIX, PATIENCE, PROCESSES, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import (
    NO_SESSION,
    OK,
    Connection,
    data_of,
    expect_seed,
    found,
    lookup,
    tktkey,
    update,
)

pytestmark = NEEDS_POSTFIX

POINTS = {
    "read the message": "handover.read = dying(handover.read)",
    "applied it": "succession.apply = dying(succession.apply)",
    "loaded all": "setup.preload = dying(setup.preload)",
    "forked the janitor": "Parent.start_janitor = dying(Parent.start_janitor)",
    "forked a worker": "Parent._spawn_worker = dying(Parent._spawn_worker)",
    "a worker is ready": "worker_start._boot = dying(worker_start._boot)",
    "a worker serves": "Readiness.note = dying(Readiness.note, when=lambda _, count: count)",
}
"""After which step it is killed, and the Python for that. The parent is, also by a worker."""

WITH_KEYS = {"forked a worker", "a worker is ready", "a worker serves"}
"""From here on there may be a worker that passes on what the dead one had taken over."""

PRELUDE = """
import contextlib, functools, os
from tlsmgr.processes import handover, setup, succession, worker_start
from tlsmgr.processes.parent import Parent
from tlsmgr.processes.restarts import Readiness

parent, is_armed = os.getpid(), os.path.exists({flag!r})

def dying(function, when=lambda *_: True):
    @functools.wraps(function)
    def step(*arguments):
        result = function(*arguments)
        if is_armed and when(*arguments):
            with contextlib.suppress(ProcessLookupError):  # another worker was first
                os.kill(parent, 9)
        return result
    return step

{change}
"""


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """While it exists, a daemon is killed at the point."""
    return tmp_path / "flag"


@pytest.fixture
def child(point: str, flag: Path) -> Iterator[MasterChild]:
    """A daemon that serves."""
    prelude = PRELUDE.format(flag=str(flag), change=POINTS[point])
    with MasterChild(keeps_sockets=True, prelude=prelude) as daemon:
        daemon.wait_until_ready()
        yield daemon
        daemon.stop()
        assert daemon.texts("error|fatal|panic|Traceback") == []


@pytest.mark.parametrize("point", POINTS)
def test_it_is_killed(child: MasterChild, point: str, flag: Path) -> None:
    """A client that stays is served all the time, and no other one waits in vain."""
    path = str(child.socket)
    with Connection(path) as stays:
        key = data_of(stays.ask(tktkey()), b"keybuf")
        assert stays.ask(update(b"smtp", b"id", b"session")) == OK
        flag.touch()
        child.hang_up()
        assert child.wait() == 0
        child.start()
        dead = child.pid
        assert child.wait() == -signal.SIGKILL
        flag.unlink()
        expect_seed(stays, 32)
        said = len(child.texts("took over|starting with new keys"))
        child.start_successor()
        expect_seed(stays, 32)
        (line,) = child.texts("took over|starting with new keys")[said:]
        new = data_of(ask(path, tktkey()), b"keybuf")
        session = ask(path, lookup(b"smtp", b"id"))
        if "took over" in line:
            assert point in WITH_KEYS
            assert line.startswith(f"took over from process {dead}: session ticket key")
            assert new == key
            assert session == found(b"session")
        else:
            assert line == "starting with new keys: nothing was handed over"
            assert new != key
            assert session == NO_SESSION
    wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
    assert child.texts("warning") == []
    assert not re.search("recreated|damaged", child.log())
    with Connection(path) as connection:
        assert connection.ask(update(b"smtp", b"new", b"another")) == OK
        assert connection.ask(lookup(b"smtp", b"new")) == found(b"another")
