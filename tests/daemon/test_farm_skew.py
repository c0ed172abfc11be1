"""Eight daemons with clocks that differ by up to ten seconds, at a quiet time and around edges.

The daemons see a shifted time of day. (libfaketime holds up the threads of the farm process, whose
waits have a time limit.) Tickets and sessions of each are taken to another one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon_process import Daemon, wait_for
from support.farm_engines import NEEDS_REDIS, Redis
from support.farm_secret import DAY, EXAMPLE_KEY, file_text, write
from support.raw_client import NO_KEY, OK, Connection, data_of, found, lookup, tktkey, update

pytestmark = [NEEDS_REDIS, pytest.mark.long]

HOSTS, SKEW, SLOT = 8, 5.0, 1800
BEFORE = 20.0  # seconds from the start of the daemons to the edge
TICKETS, SESSIONS = 2000, 400
SOON = 0.05  # seconds after an update in which it is found elsewhere


SHIFTED = """
import time
def shifted(clock, unit, offset={}):
    return lambda: clock() + type(clock())(offset * unit)
time.time, time.time_ns = shifted(time.time, 1), shifted(time.time_ns, 10**9)
"""

EDGES = {"a quiet time": (SLOT, 600.0), "a slot's edge": (SLOT, 0.0), "midnight": (DAY, 0.0)}


@pytest.fixture(params=EDGES)
def farm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Daemon]]:
    """The daemons, BEFORE seconds before the edge, more or less."""
    period, after = EDGES[request.param]
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    now = time.time()
    shift = (-now % period) + after - BEFORE
    hosts = []
    with Redis() as redis:
        try:
            for number in range(HOSTS):
                offset = shift + SKEW * (2 * number / (HOSTS - 1) - 1)
                host = Daemon(
                    f"tlsmgr_farm_secret_file={secret}",
                    f"tlsmgr_farm_store={redis.url}",
                    "tlsmgr_worker_processes=1",
                    "tlsmgr_farm_deadline=1s",
                    "smtp_tls_session_cache_size_limit=1M",
                    "smtpd_tls_session_cache_size_limit=1M",
                    "lmtp_tls_session_cache_size_limit=1M",
                    sabotage=SHIFTED.format(offset),
                )
                hosts.append(host)
                host.launch()
            for host in hosts:
                host.wait_until_ready()
                host.wait_for_log("answers: sessions are shared$")
            yield hosts
        finally:
            for host in hosts:
                host.clean_up()


def test_tickets_and_sessions_of_each_serve_all(farm: list[Daemon]) -> None:
    dice = random.Random(1)
    links = [Connection(host.socket_path) for host in farm]
    refused = missed = 0
    began = time.monotonic()
    for number in range(TICKETS):
        wait_for(lambda: time.monotonic() - began > number * 2 * BEFORE / TICKETS, "time")  # noqa: B023
        one, other = dice.sample(links, 2)
        key = data_of(one.ask(tktkey()), b"keybuf")
        reply = other.ask(tktkey(key[:16]))
        refused += reply == NO_KEY
        assert reply == NO_KEY or data_of(reply, b"keybuf") == key
        if number % (TICKETS // SESSIONS) == 0:
            cache_id, session = b"id %d" % number, dice.randbytes(1500)
            assert one.ask(update(b"smtp", cache_id, session)) == OK
            time.sleep(SOON)
            missed += other.ask(lookup(b"smtp", cache_id)) != found(session)
    for link in links:
        link.close()
    print(f"{refused} of {TICKETS} tickets refused, {missed} of {SESSIONS} sessions missed")
    assert refused <= TICKETS // 100
    assert missed <= SESSIONS // 100
