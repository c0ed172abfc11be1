"""A memcached that is stopped, under ours and under Postfix's own tlsmgr: what a seed waits."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest
from support.daemon_process import MakeDaemon
from support.farm_engines import NEEDS_MEMCACHED, Memcached
from support.master_child import NEEDS_POSTFIX
from support.raw_client import NO_SESSION, OK, Connection, expect_seed, lookup, update
from support.stock_tlsmgr import StockTlsmgr

pytestmark = [pytest.mark.faults, pytest.mark.long, NEEDS_MEMCACHED, NEEDS_POSTFIX]
MUCH = 1.0  # seconds; ours waits for the machine only


@pytest.fixture
def memcached() -> Iterator[Memcached]:
    with Memcached() as server:
        (server.directory / "x.cf").write_text(f"memcache = unix:{server.socket}\n")
        yield server


def seed_beside_a_lookup(path: str, stop: Callable[[], None]) -> tuple[float, float]:
    """Return how long a seed and a lookup wait, of two clients, after the server was stopped."""
    with Connection(path) as one, Connection(path) as other:
        assert one.ask(update(b"smtp", b"id", b"session")) == OK
        stop()
        began = time.monotonic()
        one.send(lookup(b"smtp", b"missing"))
        one.wait_until_taken()
        expect_seed(other, 32)
        seed = time.monotonic() - began
        assert one.read_list() == NO_SESSION
        return seed, time.monotonic() - began


def test_a_seed_waits_with_stock_and_not_with_ours(
    make_daemon: MakeDaemon, memcached: Memcached
) -> None:
    table = f"memcache:{memcached.directory}/x.cf"
    daemon = make_daemon(f"smtp_tls_session_cache_database={table}", "tlsmgr_worker_processes=1")
    daemon.wait_for_log("answers: sessions are shared$")
    ours = seed_beside_a_lookup(daemon.socket_path, lambda: memcached.send(signal.SIGSTOP))
    memcached.send(signal.SIGCONT)
    with StockTlsmgr(parameters={"smtp_tls_session_cache_database": table}) as stock:
        stocks = seed_beside_a_lookup(str(stock.socket), lambda: memcached.send(signal.SIGSTOP))
    print(
        f"seed and lookup wait: ours {ours[0]:.3f} {ours[1]:.3f} s, "
        f"stock {stocks[0]:.3f} {stocks[1]:.3f} s"
    )
    assert max(ours) < MUCH
    assert min(stocks) > MUCH
