"""The recorded answers of stock tlsmgr 3.7.11, byte for byte, for requests in any segments.

Each case is one connection. Random bytes are compared by number alone. Some cases store what an
earlier run would find, so each run first deletes the ids that it is going to use.
"""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

import pytest
from support.checkout import DATA
from support.daemon_process import Daemon
from support.raw_client import Connection, delete

from tlsmgr.wire import Delete, Lookup, Update, read_whole


class Step(NamedTuple):
    """Bytes to send, and the reply: its head, then a number of random bytes (or None)."""

    send: bytes
    reply: bytes
    random_bytes: int | None


def _step(row: dict[str, str]) -> Step:
    send = base64.b64decode(row["send"])
    if "reply" in row:
        return Step(send, base64.b64decode(row["reply"]), None)
    return Step(send, base64.b64decode(row["reply_prefix"]), int(row["random_bytes"]))


_FILE = DATA / "recorded-3.7.11.json"
CASES = {
    case["case"]: [_step(row) for row in case["steps"]]
    for case in json.loads(_FILE.read_text())["cases"]
}


def check(step: Step, reply: bytes) -> None:
    """The reply is the recorded one."""
    if step.random_bytes is None:
        assert reply == step.reply, step.send[:200]
        return
    assert reply.startswith(step.reply)
    text = reply[len(step.reply) : -2]
    assert reply[-2:] == b"\0\0"
    assert len(base64.b64decode(text, validate=True)) == step.random_bytes


def forget_the_ids_of(case: list[Step], connection: Connection) -> None:
    """Delete what an earlier run of the case left."""
    requests = [read_whole(step.send) for step in case]
    ids = {(r[0], r[1]) for r in requests if isinstance(r, Lookup | Update | Delete)}
    for cache_type, cache_id in ids:
        connection.ask(delete(cache_type, cache_id))


@pytest.mark.parametrize("segment", [0, 1, 7])
@pytest.mark.parametrize("name", CASES)
def test_recorded(recorded_daemon: Daemon, name: str, segment: int) -> None:
    with Connection(recorded_daemon.socket_path) as connection:
        forget_the_ids_of(CASES[name], connection)
        for step in CASES[name]:
            check(step, connection.ask(step.send, segment))


@pytest.mark.parametrize("name", CASES)
def test_recorded_in_one_write(recorded_daemon: Daemon, name: str) -> None:
    with Connection(recorded_daemon.socket_path) as connection:
        forget_the_ids_of(CASES[name], connection)
        connection.send(b"".join(step.send for step in CASES[name]))
        for step in CASES[name]:
            check(step, connection.read_list())


def test_there_are_cases() -> None:
    assert len(CASES) == 88
    assert sum(len(steps) for steps in CASES.values()) == 287
