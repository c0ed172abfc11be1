"""The rules of master(8), for stock tlsmgr(8) and for ours: messages, processes, time.

Both are started and driven as master does it.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from support.live_processes import descriptors_of
from support.master_child import AVAIL, BOTH, NEEDS_POSTFIX, PATIENCE, TAKEN, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import Connection, policy, policy_is, seed

pytestmark = NEEDS_POSTFIX

# Status messages and wake-ups.


@BOTH
def test_status_messages(stock: bool) -> None:
    """TAKEN and AVAIL in turn, from the process that master(8) knows; GENERATION is octal."""
    with MasterChild(stock=stock, environment={"GENERATION": "17"}) as child:
        with Connection(str(child.socket)) as connection:
            for _ in range(50):
                assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
            wait_until(lambda: len(child.messages) >= 2, PATIENCE)
        pid = child.pid
        assert child.stop() == 0
        assert child.torn == b""
        assert {message[:2] for message in child.messages} == {(pid, 15)}
        order = [message.availability for message in child.messages]
        assert order == ([TAKEN, AVAIL] * len(order))[: len(order)]


@BOTH
def test_no_generation(stock: bool) -> None:
    with MasterChild(stock=stock, environment={"GENERATION": "37777777777"}) as child:
        with Connection(str(child.socket)) as connection:
            connection.ask(policy(b"smtp"))
        wait_until(lambda: child.messages, PATIENCE)
        assert child.messages[0].generation == 0xFFFFFFFF


SLOW_BOOT = """
import os, time
from tlsmgr.tickets import TicketKeys

attach = TicketKeys.attach

def slow(keys, slot):
    while slot == 2 and not os.path.exists("boot"):
        time.sleep(0.01)
    attach(keys, slot)

TicketKeys.attach = slow
"""


def test_one_pair_once_every_worker_serves() -> None:
    two = {"tlsmgr_worker_processes": "2"}
    with MasterChild(prelude=SLOW_BOOT, tlsmgr_cf=two) as child:
        with Connection(str(child.socket)) as connection:  # with the first worker
            for _ in range(200):
                connection.ask(seed(32))
            assert child.messages == []
            (child.queue / "boot").touch()
            child.wait_until_ready()
            for _ in range(200):
                connection.ask(seed(32))
        child.stop()
        assert [message.availability for message in child.messages] == [TAKEN, AVAIL]


def wake_up(child: MasterChild) -> None:
    """As master(8) does it: two writes; the announcement stays unread."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as master:
        master.connect(str(child.socket))
        master.send(b"W")
        master.send(b"\0")
        master.settimeout(PATIENCE)
        master.recv(1, socket.MSG_PEEK)


@BOTH
def test_wake_up(stock: bool) -> None:
    with MasterChild(stock=stock) as child:
        for _ in range(3):
            wake_up(child)
        with Connection(str(child.socket)) as connection:
            connection.send(b"W\0")
            assert connection.read_to_end() == b""
        with Connection(str(child.socket)) as connection:
            assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
        assert child.stop() == 0
        assert child.texts("warning|error|fatal|panic") == []


@BOTH
def test_two_listen_sockets(stock: bool) -> None:
    with MasterChild(stock=stock, arguments=["-s", "2"], sockets=2) as child:
        for path in (child.socket, f"{child.socket}1"):
            with Connection(str(path)) as connection:
                assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
        assert child.stop() == 0


# Descriptors and attributes of the processes.


def test_processes_are_as_master_made_them() -> None:
    """In master's process group and session, in queue_directory, with no core file."""
    with MasterChild() as child:
        child.wait_until_ready()
        for process in (psutil.Process(child.pid), *child.workers()):
            pid = process.pid
            assert os.getpgid(pid) == child.pid
            assert os.getsid(pid) == os.getsid(0)
            assert os.readlink(f"/proc/{pid}/cwd") == str(child.queue)
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max core file size +0 ", limits)
            assert re.search(r"Max open files +(\d+) +\1 ", limits)


def test_descriptors_of_the_parent() -> None:
    """Of master's: streams, status channel, listen socket. Not the flow-control pipe."""
    with MasterChild() as child:
        child.wait_until_ready()
        links = descriptors_of(child.pid)
        assert links[0] == "/dev/null"
        assert links[1] == str(child.directory / "stdout")
        assert links[2] == str(child.directory / "stderr")
        assert links[5].startswith("socket:")
        assert links[6] == f"socket:[{child.listener_inode}]"
        assert all(flags(child.pid, fd) & os.O_CLOEXEC for fd in links if fd > 2)


def flags(pid: int, fd: int) -> int:
    """Those of open(2)."""
    found = re.search(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{fd}").read_text())
    assert found
    return int(found[1], 8)


# A defect.


def test_a_defect_of_the_start_is_in_the_log() -> None:
    """Standard error is /dev/null: without the log nobody would know."""
    prelude = "from tlsmgr.prng.reseed import Reseeder\nReseeder.open = lambda self, now: 1 / 0"
    with MasterChild(prelude=prelude) as child:
        assert child.wait(PATIENCE) == 1
        assert child.texts("panic")[0] == "panic: ZeroDivisionError: division by zero"
        assert child.log_lines(r"panic:   .*prelude\.py:\d+ in <lambda>$")
        child.expect_all_gone()


# Time.


def seconds_to_announcement(stock: bool) -> float:
    """From the start of the program to the first client's announcement."""
    with MasterChild(stock=stock) as child:
        assert child.process is not None
        began = time.monotonic()
        with Connection(str(child.socket)):
            return time.monotonic() - began


def seconds_of_imports() -> float:
    """Of Python that imports some of its library, to the end."""
    began = time.monotonic()
    modules = "asyncio, email.message, http.client, logging.config, sqlite3, ssl, unittest"
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.monotonic() - began


def test_time_to_announcement() -> None:
    """Below 400 ms on a machine that does such imports in 100; on any, in proportion."""
    samples: dict[str, list[float]] = {"stock": [], "ours": [], "imports": []}
    for _ in range(5):
        samples["stock"].append(seconds_to_announcement(stock=True))
        samples["ours"].append(seconds_to_announcement(stock=False))
        samples["imports"].append(seconds_of_imports())
    medians = {name: statistics.median(values) for name, values in samples.items()}
    print(", ".join(f"{name} {1000 * value:.0f} ms" for name, value in medians.items()))
    assert medians["ours"] < 4 * medians["imports"]
