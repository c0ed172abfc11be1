"""Workers of the real daemon: they share the clients, and no client blocks another."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.control_client import status_of
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.live_processes import descriptors_of, sockets_of
from support.raw_client import (
    ANNOUNCEMENT,
    OK,
    TIMEOUT,
    Connection,
    data_of,
    expect_seed,
    found,
    lookup,
    policy,
    seed,
    update,
)

from tlsmgr.status_object import parse

CONNECTIONS = 1000


pytestmark = pytest.mark.usefixtures("many_descriptors")


# ---------------------------------------------------------------------------------------- spread


def one_by_one(stack: contextlib.ExitStack, path: str, count: int) -> None:
    """Connect, wait for the announcement, and only then connect again."""
    for _ in range(count):
        stack.enter_context(Connection(path))


def in_a_burst(stack: contextlib.ExitStack, path: str, count: int) -> None:
    """Connect as fast as it goes from four threads; announcements are read afterwards."""
    clients = [
        stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(count)
    ]

    def connect(first: int) -> None:
        for client in clients[first::4]:
            client.connect(path)

    threads = [threading.Thread(target=connect, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.settimeout(TIMEOUT)
        assert client.recv(100) == ANNOUNCEMENT


def shares_of(daemon: Daemon, connect: Callable[..., None]) -> list[int]:
    """How many of a thousand connections, all open at the end, each worker has."""
    before = {worker.pid: sockets_of(worker.pid) for worker in daemon.workers()}
    with contextlib.ExitStack() as stack:
        connect(stack, daemon.socket_path, CONNECTIONS)
        shares = [sockets_of(worker.pid) - before[worker.pid] for worker in daemon.workers()]
    assert sum(shares) == CONNECTIONS
    return shares


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("connect", [one_by_one, in_a_burst])
def test_connections_are_spread(
    make_daemon: MakeDaemon, workers: int, connect: Callable[..., None]
) -> None:
    """No worker has more than twice another's share. The best of three counts: CPUs are shared."""
    tries = []
    for _ in range(3):
        tries.append(shares_of(make_daemon(f"tlsmgr_worker_processes={workers}"), connect))
        assert len(tries[-1]) == workers
        if max(tries[-1]) <= 2 * min(tries[-1]):
            return
    pytest.fail(f"{tries}")


def test_sequential_requests_are_spread_too(make_daemon: MakeDaemon) -> None:
    """Clients connect, ask and leave: the workers take turns."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    for _ in range(CONNECTIONS):
        with Connection(daemon.socket_path) as connection:
            connection.ask(seed(1))
    shares = [worker.requests for worker in parse(status_of(daemon.socket_path)).workers]
    assert sum(shares) == CONNECTIONS
    assert max(shares) <= 2 * min(shares), shares


# -------------------------------------------------------------------------------------- inherited


def test_a_worker_has_nothing_but_its_heritage(daemon: Daemon) -> None:
    """No directory, no entropy source, no exchange file, nothing of the parent's maintenance."""
    allowed = re.compile(
        r"/dev/null$|pipe:|socket:|anon_inode:\[event(poll|fd)\]|"
        + re.escape(str(daemon.state))
        + r"/(log-\w+|tlsmgr/(smtpd|smtp|lmtp)_scache\.sessions(-lock)?)$"
    )
    with Connection(daemon.socket_path) as connection:
        connection.ask(seed(1))
    for worker in daemon.workers():
        wait_for(lambda w=worker: sockets_of(w.pid) <= 2, "end of the client")  # type: ignore[misc]
        have = descriptors_of(worker.pid)
        assert [what for what in have.values() if not allowed.match(what)] == []
        assert sum(what.startswith("socket:") for what in have.values()) == 2, "listener, bridge"
        files = [what for what in have.values() if what.endswith("_scache.sessions")]
        assert len(set(files)) == 3
        assert not [fd for fd in have if os.path.isdir(f"/proc/{worker.pid}/fd/{fd}")]
        assert len(have) < 24


def test_clients_leave_no_descriptor_behind(daemon: Daemon) -> None:
    before = {worker.pid: set(descriptors_of(worker.pid)) for worker in daemon.workers()}
    for rest in (b"", b"req", seed(4), seed(4) * 3, update(b"smtp", b"id", b"s"), b"W\0", b"\0"):
        for _ in range(30):
            connection = Connection(daemon.socket_path)
            connection.send(rest)
            connection.close()
    for worker in daemon.workers():
        wait_for(
            lambda w=worker: set(descriptors_of(w.pid)) <= before[w.pid],  # type: ignore[misc]
            "end of all clients",
        )


@contextlib.contextmanager
def half_a_request(daemon: Daemon) -> Iterator[Connection]:
    """A client that is given up when its time is over: all that came before it is due then."""
    with Connection(daemon.socket_path) as connection:
        connection.send(seed(4)[:-3])
        yield connection
        assert connection.read_to_end() == b""


def test_a_client_is_not_given_up_for_one_that_left(make_daemon: MakeDaemon) -> None:
    """The descriptor of a client that went is another client's soon."""
    daemon = make_daemon("tlsmgr_worker_processes=1", "ipc_timeout=1s", "daemon_timeout=3s")
    for rest in (b"", b"req", seed(4)[:-1], b"\0"):
        for _ in range(10):
            connection = Connection(daemon.socket_path)
            connection.send(rest)
            connection.close()
    with contextlib.ExitStack() as stack:
        stay = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(20)]
        for connection in stay:
            assert connection.ask(policy(b"smtp"))
        with half_a_request(daemon):
            pass
        assert daemon.lines().count("warning: timeout on tlsmgr socket") == 1
        for connection in stay:
            expect_seed(connection, 4)


# ------------------------------------------------------------------------ nobody waits for anybody


def test_clients_that_do_not_read_replies_are_disconnected(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", "ipc_timeout=1s", "daemon_timeout=3s")
    requests = [seed(255), policy(b"smtp"), lookup(b"smtp", b"id"), update(b"smtp", b"i", b"s")]
    deadline = time.monotonic() + TIMEOUT
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(Connection(daemon.socket_path))
        assert other.ask(update(b"smtp", b"id", bytes(1000))) == OK
        flooding, poll = {}, select.poll()
        for request in requests:
            client = stack.enter_context(Connection(daemon.socket_path)).socket
            client.settimeout(None)
            flooding[client.fileno()] = client, request
            poll.register(client, select.POLLOUT | select.POLLHUP)
        while flooding:
            assert time.monotonic() < deadline, [request for _, request in flooding.values()]
            for fd, _ in poll.poll(100):
                client, request = flooding[fd]
                try:
                    client.send(request)  # one request a segment, as nearly all clients do
                except (BrokenPipeError, ConnectionResetError):
                    poll.unregister(fd)
                    del flooding[fd]
        assert other.ask(lookup(b"smtp", b"id")) == found(bytes(1000))


def test_a_slow_reader_costs_only_itself(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1")
    session = os.urandom(1_000_000)
    with Connection(daemon.socket_path) as slow, Connection(daemon.socket_path) as quick:
        assert quick.ask(update(b"smtp", b"large", session)) == OK
        (worker,) = daemon.workers()
        before = worker.memory_info().rss
        slow.send(lookup(b"smtp", b"large") * 100 + seed(7))
        for _ in range(200):
            expect_seed(quick, 4)
        assert worker.memory_info().rss - before < 20_000_000, "100 replies are 133 MB"
        for _ in range(100):
            assert slow.read_list() == found(session)
        assert len(data_of(slow.read_list(), b"seed")) == 7


SETTLED = {
    "a reply that was stuck": lookup(b"smtp", b"large") * 20,
    "a pipeline that took several iterations": seed(4) * 100,
    "a request that came in parts": b"",
}


def test_clients_whose_business_is_done_may_be_idle(make_daemon: MakeDaemon) -> None:
    """The time for half requests and stuck replies is over for them, not running on."""
    daemon = make_daemon("tlsmgr_worker_processes=1", "ipc_timeout=1s")
    with contextlib.ExitStack() as stack:
        clients = {case: stack.enter_context(Connection(daemon.socket_path)) for case in SETTLED}
        for case, connection in clients.items():
            assert connection.ask(update(b"smtp", b"large", bytes(200_000))) == OK
            if SETTLED[case]:
                connection.send(SETTLED[case])
            else:
                connection.ask(seed(4), segment=3)
            for _ in range(SETTLED[case].count(b"request\0")):
                assert connection.read_list().startswith(b"status\x000\0")
        for _ in range(2):
            with half_a_request(daemon):
                pass  # it is given up, so a second has passed, and more
        for connection in clients.values():
            expect_seed(connection, 4)
    assert daemon.lines().count("warning: timeout on tlsmgr socket") == 2


def test_requests_that_came_before_sigterm_are_answered(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """The signal comes while a request is served, and others have come meanwhile."""
    flag = tmp_path / "flag"
    daemon = make_daemon(
        "tlsmgr_worker_processes=1",
        sabotage=f"""
import os, signal, time
import tlsmgr.processes.worker as worker
handle = worker.handle
def slow(context, request, now):
    if request == (77,):
        open({str(flag)!r}, "w").close()
        while os.path.exists({str(flag)!r}):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
    return handle(context, request, now)
worker.handle = slow
""",
    )
    with Connection(daemon.socket_path) as first, Connection(daemon.socket_path) as second:
        first.send(seed(77))
        wait_for(flag.exists, "the request is served")
        second.send(seed(4))
        flag.unlink()
        assert len(data_of(first.read_list(), b"seed")) == 77
        assert len(data_of(second.read_list(), b"seed")) == 4
        assert first.read_to_end() == second.read_to_end() == b""


def test_a_pipeline_delays_nobody_for_long(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1")
    count = 2000
    with Connection(daemon.socket_path) as greedy, Connection(daemon.socket_path) as modest:
        sender = threading.Thread(
            target=greedy.send,
            args=(b"".join(update(b"smtp", b"%d" % n, b"session") for n in range(count)),),
        )
        sender.start()
        rounds = 0
        while sender.is_alive() and rounds < 50:
            expect_seed(modest, 4)
            rounds += 1
        for _ in range(count):
            assert greedy.read_list() == OK
        sender.join()
        assert modest.ask(lookup(b"smtp", b"%d" % (count - 1))) == found(b"session")


def test_a_worker_without_descriptors_accepts_again_later(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=1",
        sabotage="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    )
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(100):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(daemon.socket_path)
            client.settimeout(TIMEOUT)
            clients.append(client)
        daemon.wait_for_log("error: accept connection: Too many open files")
        served = [client for client in clients if select.select([client], [], [], 0)[0]]
        assert 30 < len(served) < 60
        for client in served:
            assert client.recv(100) == ANNOUNCEMENT
            client.send(policy(b"smtp"))
            assert client.recv(100).startswith(b"status\x000\0")
            client.close()
        for client in clients:
            if client not in served:
                assert client.recv(100) == ANNOUNCEMENT
                client.close()
    errors = [line for line in daemon.lines() if line.startswith("error: ")]
    assert len(errors) < 40, "one a second, not one a turn"


def test_what_one_worker_has_stored_the_others_find(daemon: Daemon) -> None:
    """With their next lookup, also those that only look up."""
    before = [sockets_of(worker.pid) for worker in daemon.workers()]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(8)]
        after = [sockets_of(worker.pid) for worker in daemon.workers()]
        assert all(now > then for now, then in zip(after, before)), "each has clients"
        for number in range(20):
            session = b"session %d" % number
            assert clients[0].ask(update(b"smtp", b"id", session)) == OK
            for client in clients[1:]:
                assert client.ask(lookup(b"smtp", b"id")) == found(session)


CLOSES_LATE = """
import os, time
from tlsmgr.sessions.cache import SessionCache

def close_late(cache, close=SessionCache.close):
    while os.path.exists({flag!r}):
        time.sleep(0.01)
    close(cache)
SessionCache.close = close_late
"""


def test_clients_do_not_wait_until_a_worker_has_closed_its_files(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """A file system that does not respond may keep it for long."""
    flag = tmp_path / "flag"
    flag.touch()
    daemon = make_daemon("tlsmgr_worker_processes=1", sabotage=CLOSES_LATE.format(flag=str(flag)))
    (worker,) = daemon.workers()
    with Connection(daemon.socket_path) as connection:
        worker.terminate()
        assert connection.read_to_end() == b""
        assert worker.is_running()
    flag.unlink()
    wait_for(lambda: not worker.is_running(), "its end")
    assert "does not respond" not in daemon.log(), "it was not killed for that"
