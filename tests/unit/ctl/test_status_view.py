"""The status for a person: all that the object has, in 80 columns."""

from __future__ import annotations

from dataclasses import replace

from support.status_samples import FARM, busy, degraded

from tlsmgr.ctl.status_view import lines
from tlsmgr.status_object import IN_PLACE, SERVING, Farm, Prng, Status

SHOWN = """\
tlsmgr 1.0, pid 4711: serving
configuration  /etc/postfix
uptime         1min40s
clients        6 connected, 2000 in total

CACHE    ENTRIES    SIZE    FULL LOOKUPS    HITS UPDATES EXPIRED EVICTED  OLDEST
smtpd          0      0B      0%       0       -       0       0       0       -
smtp        1234 64.0MiB     50%    1000     90%     500       7       3   30min

REQUEST    COUNT     P50     P99     MAX
seed       10000    12us    60us   900us
policy         0       -       -       -
lookup         0       -       -       -
update         0       -       -       -
delete         0       -       -       -
tktkey         0       -       -       -

WORKER   CLIENTS  SERVED
5000           3   10000
5001           3   10100

ticket key     0123abcd, 10min old, makes new tickets, next in 20min
ticket key     89abcdef, 40min old, opens old tickets
               2 requests named a key that is not known
random source  getrandom, 4 reseeds, the last one 30s ago
exchange file  saved 12min ago"""


def test_a_daemon_that_did_not_start() -> None:
    assert lines(degraded(Status(IN_PLACE, "1.0", 0.0, SERVING, ()), "it did not start")) == [
        "tlsmgr 1.0, pid 0: degraded",
        "  ! it did not start",
    ]


def test_a_busy_daemon() -> None:
    assert lines(busy(100)) == SHOWN.splitlines()
    assert max(map(len, lines(busy(100)))) <= 80


def test_a_degraded_daemon() -> None:
    shown = lines(degraded(busy(100), "1 of 2 workers serve", "the disk is full"))
    assert shown[:3] == [
        "tlsmgr 1.0, pid 4711: degraded",
        "  ! 1 of 2 workers serve",
        "  ! the disk is full",
    ]


def test_the_least_there_is() -> None:
    shown = lines(Status(pid=1, version="1.0", uptime_seconds=0, state="serving"))
    assert "configuration  -" in shown
    assert "no session cache is configured" in shown
    assert "ticket key     none: no client has asked for one yet" in shown
    assert "random source  none, 0 reseeds" in shown
    assert "exchange file  not saved" in shown


def test_a_farm() -> None:
    shown = lines(replace(busy(1), farm=FARM, prng=Prng()))
    assert "FARM   the ticket key is 0123abcd" in shown
    shown = lines(replace(busy(1), farm=Farm(stores=FARM.stores), prng=Prng()))
    assert "FARM   ticket keys are our own" in shown
    assert "       memcache:/b (smtpd) does not answer" in shown
