"""What the control socket's requests do, on a real session file, and what they refuse to do."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from support.cache_files import CacheFiles
from support.cache_fixtures import MakeFiles
from support.cache_fixtures import make_files as make_files
from support.parent_parts import inherited_for

from tlsmgr.control_lines import DropRequest, ListRequest, RotateRequest, StatusRequest
from tlsmgr.processes.control_commands import Commands, Refused
from tlsmgr.processes.control_status import Facts
from tlsmgr.processes.inherited import CachePlan, Inherited
from tlsmgr.sessions.cache import Change

FACTS = Facts(1, "1.0", 0.0, "/etc/postfix", 1, "dev:/dev/urandom")
BLOCKED = "^a file system does not respond; try again when it does$"
SESSIONS = 300  # more than a slice


class Bench:
    """Commands on one cache that holds sessions."""

    def __init__(self, files: CacheFiles) -> None:
        plan = CachePlan(files.rules, files.shared, files.file)
        self.inherited: Inherited = replace(inherited_for(1), caches=(plan,))
        self.blocked = self.inherited.scoreboard.files_blocked
        self.commands = Commands(FACTS, self.inherited)
        cache = files.cache()
        now = int(time.time())
        cache.apply([Change(b"%d" % number, b"session") for number in range(SESSIONS)], now)
        files.close()


@pytest.fixture
def bench(make_files: MakeFiles) -> Bench:
    return Bench(make_files(timeout=3600))


REQUESTS = [ListRequest("smtp"), DropRequest("smtp", None)]


@pytest.mark.parametrize("request_", REQUESTS, ids=["list", "drop"])
def test_no_file_is_touched_while_a_file_system_blocks(
    bench: Bench, request_: ListRequest | DropRequest
) -> None:
    """Nor opened: that would block this process as well."""
    bench.blocked[0] = 1
    with pytest.raises(Refused, match=BLOCKED):
        next(bench.commands.run(request_))


@pytest.mark.parametrize("request_", REQUESTS, ids=["list", "drop"])
def test_a_file_system_that_blocks_meanwhile_ends_the_reply(
    bench: Bench, request_: ListRequest | DropRequest
) -> None:
    reply = bench.commands.run(request_)
    next(reply)
    bench.blocked[0] = 1
    with pytest.raises(Refused, match=BLOCKED):
        next(reply)
    bench.blocked[0] = 0
    left = b"".join(bench.commands.run(ListRequest("smtp"))).count(b"\n")
    assert left == SESSIONS if request_ == REQUESTS[0] else 0 < left < SESSIONS


def test_what_needs_no_file_is_answered_while_a_file_system_blocks(bench: Bench) -> None:
    bench.blocked[0] = 1
    (status,) = bench.commands.run(StatusRequest())
    assert b"a file system does not respond" in status
    (key,) = bench.commands.run(RotateRequest())
    name = json.loads(key)["name"]
    keys = bench.inherited.ticket_keys.known(int(time.time()))
    assert keys[0].name.hex().startswith(name)


def test_a_cache_that_cannot_be_used(bench: Bench) -> None:
    plans = [plan._replace(file=None) for plan in bench.inherited.caches]
    commands = Commands(FACTS, replace(bench.inherited, caches=tuple(plans)))
    with pytest.raises(Refused, match=r"^the smtp session cache cannot be used; the log says why$"):
        next(commands.run(ListRequest("smtp")))
    with pytest.raises(Refused, match=r"^there is no x session cache \(there are: smtp\)$"):
        next(commands.run(ListRequest("x")))
    none = Commands(FACTS, replace(bench.inherited, caches=()))
    with pytest.raises(Refused, match=r"^there is no smtp session cache \(there are: none\)$"):
        next(none.run(ListRequest("smtp")))
