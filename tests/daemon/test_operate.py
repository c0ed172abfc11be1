"""tlsmgrctl top, metrics and check on the real daemon, as an administrator runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.checkout import CHECKOUT
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.settled_files import empty_configuration

from tlsmgr.client import Client
from tlsmgr.ctl import top_view
from tlsmgr.ctl.main import COMMANDS, DEFAULT_COMMAND
from tlsmgr.ctl.metrics_families import registry
from tlsmgr.ctl.status_fetch import fetch
from tlsmgr.status_object import SERVING, Status

pytestmark = pytest.mark.skipif(
    DEFAULT_COMMAND not in COMMANDS, reason="the daemon has no control socket yet"
)
SEEDS = 50
SOON = "from tlsmgr.processes import worker; worker.BEAT_INTERVAL = worker.CHECK_INTERVAL = 0.05"
"""A worker adds the times of its replies to the histograms that often, and not once a second."""


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    """A daemon that has answered SEEDS seeds, an update and two lookups, one of them in vain."""
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=SOON)
    serve(daemon)
    return daemon


def serve(daemon: Daemon) -> None:
    with Client(daemon.socket_path) as client:
        for _ in range(SEEDS):
            client.seed(32)
        client.update("smtp", b"id", b"session")
        assert client.lookup("smtp", b"id") == b"session"
        assert client.lookup("smtp", b"other") is None
        assert client.ticket_key() is not None
    wait_for(lambda: is_timed(status_of(daemon)), "the times of all requests")


def is_timed(status: Status) -> bool:
    return all(times.count == status.counters[kind] for kind, times in status.latency.items())


def status_of(daemon: Daemon) -> Status:
    return fetch(daemon.socket_path, 30.0)


def ctl(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tlsmgr.ctl.main", "--socket", daemon.socket_path, *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "MAIL_CONFIG": empty_configuration(daemon.state / "etc")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_status_object(daemon: Daemon) -> None:
    status = status_of(daemon)
    assert (status.pid, status.state, status.reasons) == (daemon.pid, SERVING, ())
    assert sorted(w.pid for w in status.workers) == sorted(w.pid for w in daemon.workers())
    cache = status.caches["smtp"]
    assert (cache.lookups, cache.hits, cache.updates) == (2, 1, 1)
    assert (status.counters["seed"], status.counters["connections"]) == (SEEDS, 1)
    assert [key.serves for key in status.ticket_keys] == ["new"]
    times = status.latency["seed"]
    assert times.count == sum(number for _, number in times.buckets) == SEEDS
    assert times.max_us is not None


def test_the_times_of_workers_that_end_in_order_are_kept(daemon: Daemon) -> None:
    """Those of their last second as well."""
    with Client(daemon.socket_path) as client:
        for _ in range(10):
            client.seed(32)
        workers = daemon.workers()
        for worker in workers:
            worker.terminate()
        wait_for(lambda: not any(w.is_running() for w in workers), "the end of the workers")
    wait_for(lambda: status_of(daemon).state == SERVING, "new workers")
    status = status_of(daemon)
    assert status.latency["seed"].count == status.counters["seed"] == SEEDS + 10


def test_metrics(daemon: Daemon) -> None:
    run = ctl(daemon, "metrics", "--text")
    assert (run.returncode, run.stderr) == (0, "")
    samples = {
        (sample.name, sample.labels.get("request"), sample.labels.get("cache")): sample.value
        for family in text_string_to_metric_families(run.stdout)
        for sample in family.samples
    }
    assert samples["postfix_tlsmgr_up", None, None] == 1
    assert samples["postfix_tlsmgr_requests_total", "seed", ""] == SEEDS
    assert samples["postfix_tlsmgr_requests_total", "lookup", "smtp"] == 2
    assert samples["postfix_tlsmgr_cache_hits_total", None, "smtp"] == 1
    assert samples["postfix_tlsmgr_request_duration_seconds_count", "seed", None] == SEEDS


def test_counters_never_decrease(daemon: Daemon) -> None:
    """To Prometheus, one that does is a restart."""
    before = counters(status_of(daemon))
    serve(daemon)
    after = counters(status_of(daemon))
    assert before.keys() <= after.keys()
    assert all(after[name] >= value for name, value in before.items())


def counters(status: Status) -> dict[str, float]:
    return {
        f"{sample.name} {sample.labels}": sample.value
        for family in registry(status, time.time()).collect()
        for sample in family.samples
        if family.type in ("counter", "histogram")
    }


def test_the_live_view(daemon: Daemon) -> None:
    before = status_of(daemon)
    serve(daemon)
    shown = top_view.lines(before, status_of(daemon), 80, 24)
    assert shown[0].startswith("tlsmgr ")
    assert f"pid {daemon.pid} " in shown[0]
    seeds = next(line for line in shown if line.startswith("seed")).split()
    assert seeds[2] == str(2 * SEEDS)
    assert "-" not in seeds
    (smtp,) = [line.split() for line in shown if line.startswith("smtp ")]
    assert smtp[4] == "50%"


def test_check(daemon: Daemon) -> None:
    run = ctl(daemon, "check")
    assert "serving: " not in run.stdout
    assert "degraded: " not in run.stdout
