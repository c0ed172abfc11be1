"""The start of the real daemon: its janitor dies, is slow, or the daemon is to end at once."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from support.daemon_clients import ask_all, serve_on
from support.daemon_process import REPLACED_SOON, Daemon, MakeDaemon, wait_for

DIE_ONCE = """
import os, signal
from tlsmgr.processes import filewatch, janitor, janitor_duties
def die_once():
    try:
        os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
"""
MOMENTS = {
    "before it is anything": """
main = janitor.main
janitor.main = lambda *arguments: (die_once(), main(*arguments))[1]
""",
    "before it has located the files": """
locate = janitor_duties._locate
janitor_duties._locate = lambda *arguments: (die_once(), locate(*arguments))[1]
""",
    "when it has located the files": """
enter = janitor_duties.jail.enter
parent_pid = os.getpid()
janitor_duties.jail.enter = lambda *rest: (os.getpid() == parent_pid or die_once(), enter(*rest))[1]
""",
    "before it has made the files": """
make = filewatch.FileWatch._make
filewatch.FileWatch._make = lambda *arguments: (die_once(), make(*arguments))[1]
""",
    "when it has made the files": """
make_all = filewatch.FileWatch.make_all
filewatch.FileWatch.make_all = lambda watch: (make_all(watch), die_once())[0]
""",
    "when it has said so": """
add_jobs = janitor.Janitor._add_jobs
janitor.Janitor._add_jobs = lambda each: (die_once(), add_jobs(each))[1]
""",
}


def wait_until_sessions_are_kept(daemon: Daemon) -> None:
    """Each request is answered meanwhile."""
    numbers = iter(range(1_000_000))
    wait_for(lambda: serve_on(daemon, next(numbers)), "sessions")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_janitor_that_dies(make_daemon: MakeDaemon, tmp_path: Path, moment: str) -> None:
    """At any moment of the start: all is served at once, and caches come."""
    flag = tmp_path / "flag"
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        sabotage=REPLACED_SOON + DIE_ONCE.format(flag=str(flag)) + MOMENTS[moment],
    )
    assert flag.exists()
    ask_all(daemon, 3)
    wait_until_sessions_are_kept(daemon)
    wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")
    assert "killed by signal 9" in daemon.log()
    assert "not available" not in daemon.log()


def test_a_janitor_that_dies_in_the_jail_without_directories(make_daemon: MakeDaemon) -> None:
    """It came to nothing in time. There are no caches then, but all else is there."""
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        "tls_random_reseed_period=1s",
        sabotage="""
import os, signal, time
from tlsmgr.processes import parent, janitor_duties
parent.LOCATE_TIME = 0.1
def locate(*rest):
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
janitor_duties._locate = locate
""",
    )
    daemon.wait_for_log("error: session caches are not available until the next reload")
    assert not serve_on(daemon, 1)
    ask_all(daemon, 3)
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert daemon.log().count("not available") == 1


def test_directories_that_are_found_late(make_daemon: MakeDaemon) -> None:
    """The janitor may take longer than any other process may be silent."""
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        "daemon_timeout=1s",
        sabotage="""
import time
from tlsmgr.processes import parent, janitor_duties
parent.LOCATE_TIME = parent.MAKE_TIME = 0.1
locate = janitor_duties._locate
janitor_duties._locate = lambda *arguments: (time.sleep(2.5), locate(*arguments))[1]
""",
    )
    assert not serve_on(daemon, 0)
    wait_until_sessions_are_kept(daemon)
    assert not re.search(r"pid \d+ does not respond", daemon.log())


@pytest.mark.parametrize("moment", ["locate", "enter_jail", "run"])
def test_a_signal_during_the_start(make_daemon: MakeDaemon, moment: str) -> None:
    """Nothing is left, whatever the daemon was doing.

    The shared memory says what files were made. It is cleared when no child can read it any more:
    a janitor would take its files for lost ones.
    """
    acts = {
        "locate": "parent.Parent.start_janitor",
        "enter_jail": "janitor_duties.jail.enter",
        "run": "parent.Parent.run",
    }
    daemon = make_daemon(
        start=False,
        sabotage=f"""
import os, signal
from tlsmgr import log, shm
from tlsmgr.processes import parent, janitor_duties
wipe = shm.SharedMemory.wipe
def wipe_alone(memory):
    try:
        if os.waitpid(-1, os.WNOHANG) == (0, 0):
            log.error("a child is left")
    except ChildProcessError:
        log.info("no child is left")
    wipe(memory)
shm.SharedMemory.wipe = wipe_alone
start, me = {acts[moment]}, os.getpid()
def end(*arguments):
    if os.getpid() == me:
        os.kill(me, signal.SIGTERM)
    return start(*arguments)
{acts[moment]} = end
""",
    )
    daemon.launch()
    assert daemon.wait() == 0
    wait_for(lambda: not daemon.processes(), "end of all processes")
    assert "no child is left" in daemon.log()
    assert "recreated empty" not in daemon.log()
