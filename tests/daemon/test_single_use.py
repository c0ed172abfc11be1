"""Tickets that are used once, asked for by many clients of several workers, and after a reload."""

from __future__ import annotations

import threading

import pytest
from support.control_client import data_of
from support.daemon_process import MakeDaemon
from support.master_child import NEEDS_POSTFIX, MasterChild
from support.raw_client import (
    NO_SESSION,
    NOT_DONE,
    OK,
    Connection,
    delete,
    found,
    lookup,
    update,
)
from support.session_bytes import TLS_1_2, session

CLIENTS, ROUNDS = 12, 60
ID = b"smtp&mx.example&192.0.2.1"


class Deliveries(threading.Thread):
    """A client that does what smtp(8) does: a lookup, then an update for each ticket that it got.

    A resumed connection gets one ticket from the server, a new one two.
    """

    def __init__(self, path: str, number: int) -> None:
        super().__init__()
        self._path = path
        self._number = number
        self.stored: list[bytes] = []
        self.used: list[bytes] = []
        self.problems: list[bytes] = []

    def run(self) -> None:
        for turn in range(ROUNDS):
            with Connection(self._path) as connection:  # another worker as a rule
                reply = connection.ask(lookup(b"smtp", ID))
                if reply != NO_SESSION:
                    self.used.append(reply)
                for ticket in range(1 + (reply == NO_SESSION)):
                    made = session(f"{self._number} {turn} {ticket}" + "." * 900)
                    self.stored.append(found(made))
                    if connection.ask(update(b"smtp", ID, made)) != OK:
                        self.problems.append(made)


def deliver(path: str) -> list[Deliveries]:
    clients = [Deliveries(path, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert not any(client.problems for client in clients)
    return clients


def test_no_ticket_is_used_twice(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=4", "tlsmgr_single_use_tickets=strict")
    clients = deliver(daemon.socket_path)
    used = [reply for client in clients for reply in client.used]
    stored = {reply for client in clients for reply in client.stored}
    assert len(used) == len(set(used))
    assert set(used) <= stored
    assert len(used) > CLIENTS * ROUNDS / 2
    with Connection(daemon.socket_path) as connection:
        left = [connection.ask(lookup(b"smtp", ID)) for _ in range(9)]
    assert left.count(NO_SESSION) >= 1
    assert len({*left, *used}) == len(set(left)) + len(used)


def test_without_it_a_ticket_is_used_again(make_daemon: MakeDaemon) -> None:
    """So the test above would see it."""
    daemon = make_daemon("tlsmgr_worker_processes=4")
    used = [reply for client in deliver(daemon.socket_path) for reply in client.used]
    assert len(set(used)) < len(used)


@pytest.mark.parametrize(("mode", "last"), [("yes", found(session("1"))), ("strict", NO_SESSION)])
def test_the_requests_of_one_client(make_daemon: MakeDaemon, mode: str, last: bytes) -> None:
    """In the caches of clients; that of the server is as ever."""
    daemon = make_daemon(f"tlsmgr_single_use_tickets={mode}", "tlsmgr_worker_processes=1")
    with Connection(daemon.socket_path) as connection:
        for kind in (b"smtp", b"lmtp"):
            for name in ("1", "2"):
                assert connection.ask(update(kind, ID, session(name))) == OK
            replies = [connection.ask(lookup(kind, ID)) for _ in range(4)]
            assert replies == [found(session("2")), found(session("1")), last, last]
            assert connection.ask(delete(kind, ID)) == (NOT_DONE if last == NO_SESSION else OK)
            assert connection.ask(lookup(kind, ID)) == NO_SESSION
        assert connection.ask(update(b"smtpd", ID, session("1"))) == OK
        assert {connection.ask(lookup(b"smtpd", ID)) for _ in range(3)} == {found(session("1"))}
        older = session("older", TLS_1_2)
        assert connection.ask(update(b"smtp", ID, older)) == OK
        assert {connection.ask(lookup(b"smtp", ID)) for _ in range(3)} == {found(older)}


@NEEDS_POSTFIX
@pytest.mark.parametrize("made", [b"", b"0", b"0\x82", b"0\xff", b"0\x82\x01", b"session"])
def test_what_is_no_session(make_daemon: MakeDaemon, made: bytes) -> None:
    """It is kept as it is, and harms no process; the control process looks into it as well."""
    daemon = make_daemon("tlsmgr_worker_processes=1", "tlsmgr_single_use_tickets=yes")
    with Connection(daemon.socket_path) as connection:
        for _ in range(2):
            assert connection.ask(update(b"smtp", ID, made)) == OK
            assert connection.ask(lookup(b"smtp", ID)) == found(made)
    (shown,) = data_of(daemon.socket_path, "list smtp")
    assert (shown["bytes"], shown["protocol"]) == (len(made), None)


def test_tickets_go_over_at_a_reload() -> None:
    with MasterChild(
        keeps_sockets=True, tlsmgr_cf={"tlsmgr_single_use_tickets": "strict"}
    ) as child:
        with Connection(str(child.socket)) as connection:
            for name in ("1", "2", "3"):
                assert connection.ask(update(b"smtp", ID, session(name))) == OK
            assert connection.ask(lookup(b"smtp", ID)) == found(session("3"))
        child.reload()
        with Connection(str(child.socket)) as connection:
            replies = [connection.ask(lookup(b"smtp", ID)) for _ in range(3)]
        child.stop()
    assert replies == [found(session("2")), found(session("1")), NO_SESSION]
