"""Large requests, and the limits of a cache while sessions pour in."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable

import pytest
from support.cache_files import MIB
from support.daemon_clients import send_all
from support.daemon_process import Daemon, MakeDaemon
from support.raw_client import (
    BAD_REQUEST,
    NO_SESSION,
    OK,
    Connection,
    data_of,
    delete,
    found,
    lookup,
    update,
)

from tlsmgr.sessions.file import map_size_for
from tlsmgr.wire import REQUEST_LIMIT

pytestmark = pytest.mark.usefixtures("many_descriptors")


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


def request_of(size: int) -> tuple[bytes, bytes]:
    """An update of exactly that many bytes, and its id."""
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


def test_limits_hold_while_40_000_ids_go_in(make_daemon: MakeDaemon) -> None:
    """One cache is limited by bytes, the other one by entries; 20,000 ids each, from 8 clients."""
    limit, entries, count = 8 * MIB, 5000, 20_000
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
    # All of it is allocated when the file is made; 1 MiB is for the lock table.
    assert largest["smtp"] < map_size_for(limit) + MIB
    assert largest["smtpd"] < map_size_for(128 * MIB) + MIB
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
