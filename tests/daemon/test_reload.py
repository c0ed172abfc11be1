"""A reload under master(8): what the successor takes over, and what it does not.

The master is this process, which keeps the listening socket open between two starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator

import psutil
import pytest
from support.cache_files import in_child
from support.daemon_clients import ask
from support.master_child import NEEDS_POSTFIX, PATIENCE, MasterChild
from support.raw_client import ANNOUNCEMENT, data_of, tktkey

from tlsmgr.processes import handover, parking
from tlsmgr.processes.parking import Parked


def unsealed(data: bytes) -> int:
    """A memory file that can still be changed."""
    memory = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memory, data)
    return memory


def at_time(data: bytes, change: int) -> int:
    """The message, as if it had been left that many seconds later."""
    content = json.loads(data[24:])
    body = json.dumps({**content, "time": content["time"] + change}).encode()
    return handover.seal(struct.pack("=16sII", data[:16], handover.LAYOUT, len(body)) + body)


def a_pipe(_: bytes) -> int:
    """No memory file at all."""
    reader, writer = os.pipe()
    os.close(writer)
    return reader


pytestmark = NEEDS_POSTFIX

ODD: dict[str, tuple[Callable[[bytes], int], str]] = {
    "not sealed": (unsealed, r"hand-over from process \d+ refused: it is not sealed"),
    "another layout": (
        lambda data: handover.seal(data[:16] + b"\x07" + data[17:]),
        r"hand-over from process \d+: its layout is 7, not 1",
    ),
    "short": (
        lambda data: handover.seal(data[:-1]),
        r"hand-over from process \d+ refused: its length is wrong",
    ),
    "long": (
        lambda data: handover.seal(data + bytes(handover.LONGEST)),
        r"hand-over from process \d+ refused: it is no message of this program",
    ),
    "old": (
        lambda data: at_time(data, -2 * handover.LONGEST_WAIT),
        r"hand-over from process \d+ refused: its time is implausible",
    ),
    "from the future": (
        lambda data: at_time(data, 2 * handover.CLOCK_SLACK),
        r"hand-over from process \d+ refused: its time is implausible",
    ),
    "no file": (a_pipe, r"hand-over from process \d+ refused: it is no memory file"),
}


@pytest.fixture
def child() -> Iterator[MasterChild]:
    """A daemon that serves."""
    with MasterChild(keeps_sockets=True) as daemon:
        daemon.wait_until_ready()
        yield daemon


def key_of(child: MasterChild) -> bytes:
    """The ticket key for new tickets."""
    return data_of(ask(str(child.socket), tktkey()), b"keybuf")


def end(child: MasterChild) -> bytes:
    """End it as a reload does; return the ticket key that it had."""
    key = key_of(child)
    child.hang_up()
    assert child.wait() == 0
    return key


def expect_new_keys(child: MasterChild, old: bytes, reason: str) -> None:
    """Start the next one, and check that it serves with new keys and says why, once."""
    said = len(child.texts("took over|starting with new keys"))
    child.messages.clear()
    child.start()
    child.wait_until_ready()
    assert key_of(child) != old
    (line,) = child.texts("took over|starting with new keys")[said:]
    assert re.fullmatch(f"(warning: )?starting with new keys: {reason}", line), line


def test_ticket_keys_and_counts_go_over(child: MasterChild) -> None:
    """Through a chain of reloads; each says so, with the name of the key and the pid."""
    key = key_of(child)
    for _ in range(4):
        before = child.pid
        child.reload()
        child.wait_until_ready()
        assert child.texts("took over")[-1] == (
            f"took over from process {before}: session ticket key {key[:4].hex()},"
            " smtpd cache, smtp cache"
        )
        assert key_of(child) == key
        assert data_of(ask(str(child.socket), tktkey(key[:16])), b"keybuf") == key
    child.stop()
    assert "tktkey=2" in child.texts("statistics")[-1], "each counts its own"
    assert child.texts("warning|error|fatal|panic") == []


def test_the_socket_is_readable_and_who_waits_there_is_greeted(child: MasterChild) -> None:
    """So master(8) starts the next one without a client. The next finds it behind a client."""
    key = end(child)
    (listener,) = child._kept
    assert select.select([listener], [], [], 0)[0] == [listener]
    (parked,) = parking.arrivals(listener.fileno())
    assert isinstance(parked, Parked)
    assert parked.uid == os.stat(child.data).st_uid
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(child.socket))
        client.settimeout(PATIENCE)
        parking.park(str(child.socket), parked.message)
        parked.close()
        child.messages.clear()
        child.start()
        assert client.recv(100) == ANNOUNCEMENT
        client.send(tktkey())
        assert data_of(client.recv(1000), b"keybuf") == key


def test_stop_forgets(child: MasterChild) -> None:
    """Also when the status channel closes in the same moment, as at `postfix stop`."""
    old = key_of(child)
    os.kill(child.pid, signal.SIGSTOP)
    os.killpg(child.pid, signal.SIGTERM)
    child.hang_up()
    os.killpg(child.pid, signal.SIGCONT)
    assert child.wait() == 0
    expect_new_keys(child, old, "nothing was handed over")


def test_closing_the_socket_forgets(child: MasterChild) -> None:
    old = end(child)
    child.close_sockets()
    expect_new_keys(child, old, "nothing was handed over")


def test_turned_off(child: MasterChild) -> None:
    """By the successor, which drops what waits; then by the one before, which leaves nothing."""
    child.tlsmgr_cf = {"tlsmgr_handover": "no"}
    expect_new_keys(child, end(child), "tlsmgr_handover is off")
    old = end(child)
    assert list(parking.arrivals(child._kept[0].fileno())) == []
    child.tlsmgr_cf = {"tlsmgr_handover": "yes"}
    expect_new_keys(child, old, "nothing was handed over")


@pytest.mark.parametrize("case", ODD)
def test_odd_messages(child: MasterChild, case: str) -> None:
    """One line, and the service goes on with new keys."""
    old = end(child)
    (listener,) = child._kept
    (parked,) = parking.arrivals(listener.fileno())
    assert isinstance(parked, Parked)
    make, reason = ODD[case]
    memory = make(os.pread(parked.message, 1 << 20, 0))
    parking.park(str(child.socket), memory)
    os.close(memory)
    parked.close()
    expect_new_keys(child, old, reason)


def test_from_a_stranger(child: MasterChild) -> None:
    """Whoever is neither root nor mail_owner, and could connect all the same."""
    old = end(child)
    (listener,) = child._kept
    (parked,) = parking.arrivals(listener.fileno())
    assert isinstance(parked, Parked)
    child.socket.parent.chmod(0o755)

    def leave_it() -> None:
        os.setuid(1)
        parking.park(str(child.socket), parked.message)

    in_child(leave_it)
    parked.close()
    expect_new_keys(child, old, r"hand-over from process \d+ refused: it is from user 1")


def test_two_at_once(child: MasterChild) -> None:
    """The first counts; the other one is a client that a worker meets, and that has gone."""
    key = end(child)
    (listener,) = child._kept
    (parked,) = parking.arrivals(listener.fileno())
    assert isinstance(parked, Parked)
    for _ in range(2):
        parking.park(str(child.socket), parked.message)
    parked.close()
    child.start()
    assert key_of(child) == key
    child.stop()
    assert child.texts("statistics")[-1] == "statistics: connections=2 tktkey=1"
    assert child.texts("warning|error|fatal|panic") == []


def test_full_backlog(child: MasterChild) -> None:
    """One warning. The workers are stopped, so nobody accepts."""
    key_of(child)
    workers = child.workers()
    with contextlib.ExitStack() as stack:
        for worker in workers:
            worker.suspend()
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                client.setblocking(False)
                client.connect(str(child.socket))
        child.hang_up()
        assert child.wait() == 0
    for worker in workers:  # the kernel does it, but not where init is in the session of the test
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
    assert child.texts("warning") == [
        "warning: cannot hand over sessions and ticket keys: too many clients wait at the socket;"
        " the next start has new keys"
    ]


def test_stock_in_between(child: MasterChild) -> None:
    """It takes the message for a wake-up, and drops it. Ours starts with new keys after that."""
    old = end(child)
    child.stock = True
    child.start()
    assert key_of(child) != old
    child.hang_up()
    child.wait()
    child.stock = False
    expect_new_keys(child, old, "nothing was handed over")
