"""kill -9 of each kind of process at random moments."""

from __future__ import annotations

import contextlib
import random
import time

import psutil
import pytest
from support.daemon_clients import keeps_sessions
from support.daemon_process import REPLACED_SOON, Daemon, MakeDaemon, wait_for
from support.fault_load import RETRY_PAUSE, Wait
from support.fault_table import FaultTable
from support.live_processes import named

pytestmark = pytest.mark.faults

SOON = 5.0  # seconds in which a client notices that the daemon is gone
BEFORE = 0.1  # seconds that a client may take to notice that its connection is broken


def is_hit_twice(wait: Wait, kills: list[float]) -> bool:
    """Return whether both connections of a request may have been those of a killed worker."""
    end = wait.began + wait.seconds + RETRY_PAUSE
    return sum(wait.began - BEFORE <= kill <= end for kill in kills) > 1


def kill_some(daemon: Daemon, dice: random.Random, kills: int) -> list[float]:
    """Kill workers and janitors, but never the last worker; return the times."""
    times: list[float] = []
    while len(times) < kills:
        time.sleep(dice.uniform(0, 0.15))
        workers = daemon.workers()
        if len(workers) > 1:
            with contextlib.suppress(psutil.NoSuchProcess):
                began = time.monotonic()
                dice.choice([*workers, *named(daemon.pid, "tlsmgr-janitor")]).kill()
                times.append(began)
    return times


@pytest.mark.parametrize(
    "kills",
    [6, pytest.param(100, marks=pytest.mark.long), pytest.param(1000, marks=pytest.mark.long)],
)
def test_kills(make_daemon: MakeDaemon, faults: FaultTable, kills: int) -> None:
    """At least one worker is left each time; no update is lost and no file is made new."""
    daemon = make_daemon("tlsmgr_worker_processes=4")
    with faults.under_load(daemon, f"{kills} kills of workers and janitor") as load:
        times = kill_some(daemon, random.Random(kills), kills)
        wait_for(lambda: len(daemon.worker_pids()) == 4, "four workers")
    assert (load.lost, load.stale) == (0, 0)
    assert [wait for wait in load.failed if not is_hit_twice(wait, times)] == []
    assert "recreated" not in daemon.log()


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.long)])
def test_kills_while_files_are_lost(
    make_daemon: MakeDaemon, faults: FaultTable, rounds: int
) -> None:
    """Of workers that drain, that start, and of the janitor that makes the file again."""
    daemon = make_daemon("tlsmgr_worker_processes=4", sabotage=REPLACED_SOON)
    dice = random.Random(rounds)
    name = daemon.directory / "smtp_scache.sessions"
    times: list[float] = []
    with faults.under_load(daemon, "files lost, and kills meanwhile", others_serve=False) as load:
        for _ in range(rounds):
            lost = dice.choice([name, name.with_name(f"{name.name}-lock")])
            lost.unlink(missing_ok=True)
            times += kill_some(daemon, dice, 5)
        wait_for(lambda: all(keeps_sessions(daemon, b"%d" % n) for n in range(20)), "sessions")
    assert load.stale == 0
    assert [wait for wait in load.failed if not is_hit_twice(wait, times)] == []


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.long)])
def test_kills_of_the_parent(make_daemon: MakeDaemon, faults: FaultTable, rounds: int) -> None:
    """Its children end, and the next daemon starts on what it left."""
    dice = random.Random(rounds)
    first = make_daemon("tlsmgr_worker_processes=2", start=False)
    with contextlib.ExitStack() as stack:
        for _ in range(rounds):
            daemon = make_daemon("tlsmgr_worker_processes=2", state=str(first.state))
            stack.callback(psutil.Process(daemon.pid).kill)
            with faults.under_load(daemon, "parent killed", others_serve=False) as load:
                time.sleep(dice.uniform(0, 0.1))
                psutil.Process(daemon.pid).kill()
                daemon.wait()
                wait_for(lambda d=daemon: not d.processes(), "end of all")  # type: ignore[misc]
            assert all(wait.seconds < SOON for wait in load.waits())
            stack.pop_all()
