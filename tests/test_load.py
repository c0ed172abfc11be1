"""The real daemon under load and ill treatment: nothing acknowledged is lost, nobody waits long."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable

import psutil
import pytest
from conftest import MakeDaemon
from daemon_process import Daemon, wait_for
from raw_client import (
    BAD_REQUEST,
    NO_SESSION,
    NOT_FOUND,
    OK,
    Connection,
    data_of,
    delete,
    found,
    lookup,
    policy,
    seed,
    tktkey,
    update,
)

from tlsmgr.wire import REQUEST_LIMIT

pytestmark = pytest.mark.usefixtures("many_descriptors")

MIB = 1024 * 1024
WINDOW = 100  # requests in flight on one connection


def at_once(works: Iterable[Callable[[], object]]) -> None:
    """Run them in threads; an exception in one fails the test."""
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def send_all(connection: Connection, requests: list[bytes]) -> list[bytes]:
    """Pipeline the requests, a window at a time; their replies."""
    replies = []
    for start in range(0, len(requests), WINDOW):
        window = requests[start : start + WINDOW]
        connection.send(b"".join(window))
        replies += [connection.read_list() for _ in window]
    return replies


# -------------------------------------------------------------------------------------- agreement


def test_four_workers_agree(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=4")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(32)]
        (key,) = {client.ask(tktkey()) for client in clients}
        name = data_of(key, b"keybuf")[:16]
        assert {client.ask(tktkey(name)) for client in clients} == {key}
        for number, writer in enumerate(clients):
            cache_id, session = b"id %d" % number, os.urandom(500)
            assert writer.ask(update(b"smtp", cache_id, session)) == OK
            assert {client.ask(lookup(b"smtp", cache_id)) for client in clients} == {found(session)}
            assert writer.ask(update(b"smtp", cache_id, b"changed")) == OK
            reader = clients[number * 7 % 32]
            assert reader.ask(lookup(b"smtp", cache_id)) == found(b"changed")
            assert reader.ask(delete(b"smtp", cache_id)) == OK
            assert {client.ask(lookup(b"smtp", cache_id)) for client in clients} == {NO_SESSION}
            assert writer.ask(delete(b"smtp", cache_id)) == NOT_FOUND


def test_pipelined_requests_are_answered_in_order(daemon: Daemon) -> None:
    dice = random.Random(2)
    sessions: dict[bytes, bytes] = {}
    requests, replies = [], []
    for number in range(5000):
        cache_id = b"%d" % dice.randrange(20)
        kind = dice.randrange(4)
        if kind == 0:
            sessions[cache_id] = b"session %d" % number
            requests.append(update(b"smtp", cache_id, sessions[cache_id]))
            replies.append(OK)
        elif kind == 1:
            requests.append(delete(b"smtp", cache_id))
            replies.append(OK if sessions.pop(cache_id, None) is not None else NOT_FOUND)
        elif kind == 2:
            requests.append(lookup(b"smtp", cache_id))
            replies.append(found(sessions[cache_id]) if cache_id in sessions else NO_SESSION)
        else:
            requests.append(policy(b"bogus"))
            replies.append(b"status\x004294967294\0cachable\x000\0timeout\x000\0\0")
    with Connection(daemon.socket_path) as connection:
        sender = threading.Thread(target=connection.send, args=(b"".join(requests),))
        sender.start()
        for request, reply in zip(requests, replies):
            assert connection.read_list() == reply, request
        sender.join()


# ------------------------------------------------------------------------------------------ deaths


class Updater:
    """One client: updates one after the other, again on a new connection when one breaks."""

    def __init__(self, daemon: Daemon, number: int, count: int) -> None:
        self._path = daemon.socket_path
        self._connection: Connection | None = None
        self._dice = random.Random(number)
        self.sessions: dict[bytes, bytes] = {}  # acknowledged
        self.longest = 0.0  # seconds that one update took, all its tries together
        self.broken = 0
        self._number, self._count = number, count

    def run(self) -> None:
        for number in range(self._count):
            cache_id = b"client %d id %d" % (self._number, number)
            session = self._dice.randbytes(self._dice.choice([20, 141, 1146]))
            began = time.monotonic()
            while not self._try(update(b"smtp", cache_id, session)):
                self.broken += 1
            self.longest = max(self.longest, time.monotonic() - began)
            self.sessions[cache_id] = session
        if self._connection is not None:
            self._connection.close()

    def _try(self, request: bytes) -> bool:
        try:
            if self._connection is None:
                self._connection = Connection(self._path)
            assert self._connection.ask(request) == OK
        except (EOFError, ConnectionError):
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return False
        return True


def kill_workers(daemon: Daemon, clients: list[threading.Thread], pause: float) -> int:
    """Kill a worker again and again while the clients are busy; how many were killed."""
    dice = random.Random(4)
    killed = 0
    while any(client.is_alive() for client in clients):
        time.sleep(dice.uniform(0, 2 * pause))
        workers = daemon.workers()
        if len(workers) > 1:
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(workers).kill()
                killed += 1
    return killed


def check_that_updates_survive_kills(make_daemon: MakeDaemon, count: int, pause: float) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=4", f"smtp_tls_session_cache_size_limit={1024 * MIB}"
    )
    updaters = [Updater(daemon, number, count // 8) for number in range(8)]
    clients = [threading.Thread(target=updater.run) for updater in updaters]
    for client in clients:
        client.start()
    killed = kill_workers(daemon, clients, pause)
    for client in clients:
        client.join()
    acknowledged = {k: v for updater in updaters for k, v in updater.sessions.items()}
    assert len(acknowledged) == count
    assert killed >= 5
    assert sum(updater.broken for updater in updaters) >= 5
    assert max(updater.longest for updater in updaters) < 2.0
    wait_for(lambda: len(daemon.workers()) == 4, "all workers")
    with Connection(daemon.socket_path) as connection:
        ids = list(acknowledged)
        replies = send_all(connection, [lookup(b"smtp", cache_id) for cache_id in ids])
        lost = [i for i, reply in zip(ids, replies) if reply != found(acknowledged[i])]
    assert lost == []
    assert "made anew" not in daemon.log()


def test_acknowledged_updates_survive_kills_of_workers(make_daemon: MakeDaemon) -> None:
    """20,000 updates from eight clients; no client waits longer than two seconds."""
    check_that_updates_survive_kills(make_daemon, 20_000, 0.1)


@pytest.mark.long
def test_acknowledged_updates_survive_many_kills(make_daemon: MakeDaemon) -> None:
    check_that_updates_survive_kills(make_daemon, 400_000, 0.05)


# ----------------------------------------------------------------------------------- many clients


def test_a_thousand_idle_and_a_hundred_stalled_clients_delay_nobody(
    make_daemon: MakeDaemon,
) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2")
    requests = [update(b"smtp", b"stalled %d" % number, b"session") for number in range(100)]
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(1000)]
        stalled = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(100)]
        for number, client in enumerate(stalled):
            client.send(requests[number][: number % (len(requests[number]) - 1) + 1])
        busy = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(8)]
        for _ in range(50):
            for client in busy:
                assert len(data_of(client.ask(seed(32)), b"seed")) == 32
                assert client.ask(update(b"smtp", b"busy", b"session")) == OK
                assert client.ask(lookup(b"smtp", b"busy")) == found(b"session")
        for number, client in enumerate(stalled):
            client.send(requests[number][number % (len(requests[number]) - 1) + 1 :])
        assert {client.read_list() for client in stalled} == {OK}
        assert {client.ask(lookup(b"smtp", b"stalled 99")) for client in idle} == {
            found(b"session")
        }
    assert not [line for line in daemon.lines() if "warning" in line]


# ----------------------------------------------------------------------------------------- garbage


VALID = [
    seed(32),
    policy(b"smtp"),
    lookup(b"smtp", b"id"),
    update(b"smtp", b"id", b"session"),
    delete(b"smtp", b"id"),
    tktkey(),
    tktkey(bytes(16)),
    b"W\0",
]


def mutate(dice: random.Random, request: bytes) -> bytes:
    """The request with a few slips: bytes changed, lost, doubled, moved."""
    data = bytearray(request)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.randrange(1, 9))
        slip = dice.randrange(5)
        if slip == 0:
            data[at:end] = dice.randbytes(end - at)
        elif slip == 1:
            del data[at:end]
        elif slip == 2:
            data[at:at] = data[at:end]
        elif slip == 3:
            data[at:at] = b"\0" * dice.randrange(1, 4)
        else:
            data[at:at] = dice.choice(VALID)
    return bytes(data)


def garbage(dice: random.Random) -> bytes:
    """Something that is hardly a request."""
    kind = dice.randrange(10)
    if kind == 0:
        return dice.randbytes(dice.randrange(200))
    if kind == 1:
        return dice.choice(VALID)
    return mutate(dice, dice.choice(VALID))


def throw_garbage(daemon: Daemon, dice: random.Random, count: int) -> None:
    """So many pieces, some in a connection; what comes back does not matter."""
    while count > 0:
        pieces = min(count, dice.randrange(1, 40))
        count -= pieces
        with Connection(daemon.socket_path) as connection:
            with contextlib.suppress(OSError):
                for _ in range(pieces):
                    connection.send(garbage(dice), dice.choice([0, 0, 0, 3]))
                connection.half_close()
            if dice.randrange(4):
                connection.read_to_end()


def check_that_garbage_is_survived(daemon: Daemon, count: int) -> None:
    dice = random.Random(3)
    workers = daemon.workers()
    throw_garbage(daemon, dice, count // 10)
    before = daemon.memory()
    throw_garbage(daemon, dice, count - count // 10)
    grown = daemon.memory() - before
    assert daemon.workers() == workers, "nobody died of it"
    assert grown < 6 * MIB, "two workers and the parent, together"
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"afterwards", b"session")) == OK
        assert connection.ask(lookup(b"smtp", b"afterwards")) == found(b"session")
        assert len(data_of(connection.ask(seed(32)), b"seed")) == 32


def test_garbage(daemon: Daemon) -> None:
    check_that_garbage_is_survived(daemon, 50_000)


@pytest.mark.long
def test_much_garbage(daemon: Daemon) -> None:
    check_that_garbage_is_survived(daemon, 1_000_000)


def test_memory_stays_flat_under_large_requests(daemon: Daemon) -> None:
    """Refused ones, unfinished ones, and good ones."""
    too_large = update(b"smtp", b"x", bytes(2 * MIB))
    good = update(b"smtp", b"good", os.urandom(1_000_000))
    before = daemon.memory()
    for _ in range(30):
        with Connection(daemon.socket_path) as connection:
            with contextlib.suppress(OSError):
                connection.send(too_large)
            assert connection.read_to_end() == BAD_REQUEST
        with Connection(daemon.socket_path) as connection:
            connection.send(good[:900_000])
        with Connection(daemon.socket_path) as connection:
            assert connection.ask(good) == OK
            connection.ask(lookup(b"smtp", b"good"))
    grown = daemon.memory() - before
    assert grown < 16 * MIB, "a few buffers that the allocator keeps, for two workers"


# ----------------------------------------------------------------------------------------- limits


def request_of(size: int) -> tuple[bytes, bytes]:
    """An update of exactly so many bytes, and its id."""
    frame = len(update(b"smtp", b"", b""))
    cache_id = b"i" * (1 + (size - frame - 1) % 4)
    session = bytes((size - frame - len(cache_id)) // 4 * 3)
    request = update(b"smtp", cache_id, session)
    assert len(request) == size
    return request, cache_id


def test_a_request_of_two_mebibytes(daemon: Daemon) -> None:
    for size in (1_400_000, REQUEST_LIMIT - 1, REQUEST_LIMIT):
        request, cache_id = request_of(size)
        with Connection(daemon.socket_path) as connection:
            assert connection.ask(request) == OK
            session = data_of(connection.ask(lookup(b"smtp", cache_id)), b"session")
            assert session == bytes(len(session))
            assert len(session) > size // 2


@pytest.mark.parametrize("size", [REQUEST_LIMIT + 1, 3 * MIB])
def test_a_larger_request_is_refused_and_the_connection_closed(daemon: Daemon, size: int) -> None:
    request, _ = request_of(size)
    with Connection(daemon.socket_path) as connection:
        with contextlib.suppress(BrokenPipeError):
            connection.send(request)
        assert connection.read_to_end() == BAD_REQUEST
    expected = f"warning: request from tlsmgr socket over {REQUEST_LIMIT} bytes"
    assert daemon.lines().count(expected) == 1


def test_a_cache_id_of_more_than_a_mebibyte(daemon: Daemon) -> None:
    workers = daemon.workers()
    cache_id = b"i" * 1_500_000
    with Connection(daemon.socket_path) as connection:
        for _ in range(5):
            assert connection.ask(update(b"smtp", cache_id, b"session")) == OK
            assert connection.ask(lookup(b"smtp", cache_id)) == found(b"session")
            assert connection.ask(delete(b"smtp", cache_id)) == OK
            assert connection.ask(lookup(b"smtp", cache_id)) == NO_SESSION
    assert daemon.workers() == workers


def disk_space(daemon: Daemon, cache_type: str) -> int:
    """Bytes on the disk that a cache takes, lock table included."""
    return sum(
        path.stat().st_blocks * 512 for path in daemon.directory.glob(f"{cache_type}_scache*")
    )


def test_limits_hold_while_100_000_ids_go_in(make_daemon: MakeDaemon) -> None:
    """One cache is limited by bytes, the other one by entries; 50,000 ids each, from 8 clients."""
    limit, entries, count = 8 * MIB, 5000, 50_000
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        f"smtp_tls_session_cache_size_limit={limit}",
        f"smtpd_tls_session_cache_entry_limit={entries}",
    )
    session = os.urandom(600)
    largest = {"smtp": 0, "smtpd": 0}

    def fill(cache_type: bytes, first: int) -> None:
        with Connection(daemon.socket_path) as connection:
            for start in range(first, count, 4 * 500):
                numbers = range(start, start + 4 * 500, 4)
                requests = [update(cache_type, b"id %d" % n, session) for n in numbers]
                assert set(send_all(connection, requests)) == {OK}
                name = cache_type.decode()
                largest[name] = max(largest[name], disk_space(daemon, name))

    at_once(
        lambda c=cache_type, f=first: fill(c, f)  # type: ignore[misc]
        for first in range(4)
        for cache_type in (b"smtp", b"smtpd")
    )
    assert largest["smtp"] < 2 * limit + 2 * MIB
    assert largest["smtpd"] < 4 * entries * len(session) + 2 * MIB
    with Connection(daemon.socket_path) as connection:
        kept: dict[bytes, list[int]] = {}
        for cache_type in (b"smtp", b"smtpd"):
            requests = [lookup(cache_type, b"id %d" % n) for n in range(count)]
            replies = send_all(connection, requests)
            assert set(replies) <= {found(session), NO_SESSION}
            kept[cache_type] = [n for n, r in enumerate(replies) if r != NO_SESSION]
    assert len(kept[b"smtpd"]) == entries
    # 700 bytes an entry in half-filled pages at worst, and of the youngest none is missing.
    assert limit // 1400 < len(kept[b"smtp"]) < limit // 650
    for numbers in kept.values():
        assert max(numbers) >= count - 4
        assert min(numbers) > count // 4
    assert "warning" not in daemon.log()


def test_slow_readers_of_large_replies_delay_nobody(daemon: Daemon) -> None:
    session = os.urandom(1_000_000)
    with contextlib.ExitStack() as stack:
        quick = stack.enter_context(Connection(daemon.socket_path))
        assert quick.ask(update(b"smtp", b"large", session)) == OK
        slow = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(20)]
        for client in slow:
            client.send(lookup(b"smtp", b"large") * 3)
        for _ in range(100):
            assert len(data_of(quick.ask(seed(32)), b"seed")) == 32
            assert quick.ask(update(b"smtp", b"small", b"session")) == OK
        for client in slow:
            for _ in range(3):
                assert client.read_list() == found(session)


def test_stopped_worker_stops_only_its_own_clients(make_daemon: MakeDaemon) -> None:
    """Not even one that holds the writers' lock of a cache for a moment."""
    daemon = make_daemon("tlsmgr_worker_processes=3")
    victim = daemon.workers()[0]
    victim.send_signal(signal.SIGSTOP)
    try:
        for number in range(200):
            with Connection(daemon.socket_path) as connection:
                assert connection.ask(update(b"smtp", b"%d" % number, b"session")) == OK
                assert connection.ask(lookup(b"smtp", b"%d" % number)) == found(b"session")
    finally:
        victim.send_signal(signal.SIGCONT)
