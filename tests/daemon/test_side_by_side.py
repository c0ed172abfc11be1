"""Stock tlsmgr(8) and ours side by side, on the same main.cf; and one after the other, on the same
files.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.test_recorded import CASES, Step, forget_the_ids_of
from support.master_child import BOTH, NEEDS_POSTFIX, PATIENCE, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import Connection, delete, lookup, policy, seed, tktkey, update

pytestmark = NEEDS_POSTFIX

MOST_MISTAKES = 60
RANDOM_REQUESTS = 1500
TYPES = [b"smtp", b"smtpd", b"lmtp", b"SMTP", b""]
IDS = [b"", b"id", b"smtp&example.com&", b"\xc3\xa9", b"{", *(b"id%d" % n for n in range(8))]
SIZES = [0, 1, 2, 141, 1500, 8000, 66000]


ALL_WARNINGS = "from tlsmgr.processes import worker\nworker.WARNING_BURST = 10**6"
"""Stock logs each of them; ours is to log as many here."""


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[MasterChild, MasterChild]]:
    """Stock and ours, with the same main.cf but for the directories."""
    with MasterChild(stock=True) as stock, MasterChild(prelude=ALL_WARNINGS) as ours:
        assert main_cf(stock) == main_cf(ours)
        yield stock, ours


def main_cf(child: MasterChild) -> str:
    """The content of main.cf, with the names of its directories made equal."""
    text = (child.config / "main.cf").read_text()
    return text.replace(str(child.data), "DATA").replace(str(child.directory), "HERE")


SECRET = re.compile("(malformed base64 data .* value: ).*")
"""Stock quotes what may be a session; we tell how long it is."""


def comparable(reply: bytes, random_bytes: int | None = None) -> bytes:
    """Without what is random, and without data in a refusal, which stock may forget to empty."""
    if random_bytes is not None:
        return re.sub(rb"\0[^\0]{%d}\0\0$" % (4 * -(-random_bytes // 3)), b"\0RANDOM\0\0", reply)
    if not reply.startswith(b"status\x000\0"):
        return re.sub(rb"(seed|session|keybuf)\0[^\0]*\0", rb"\1\0\0", reply)
    return reply


def answers(child: MasterChild, case: list[Step]) -> tuple[list[bytes], list[str]]:
    """The replies to a recorded case, and the texts of what was logged."""
    with Connection(str(child.socket)) as connection:
        forget_the_ids_of(case, connection)
        before = settled_log(child, connection)
        replies = [comparable(connection.ask(step.send), step.random_bytes) for step in case]
        texts = settled_log(child, connection)[len(before) :]
        return replies, [SECRET.sub(r"\1", text) for text in texts]


def settled_log(child: MasterChild, connection: Connection) -> list[str]:
    """The warnings so far: lines come in order, hence none is behind that of a bogus type."""
    mark = b"mark %d" % time.monotonic_ns()
    connection.ask(policy(mark))
    child.wait_log(mark.decode())
    return [text for text in child.texts("warning: ") if '"mark ' not in text]


@pytest.mark.parametrize("name", CASES)
def test_recorded_requests(pair: tuple[MasterChild, MasterChild], name: str) -> None:
    """The same replies, and the same warnings."""
    stock, ours = (answers(child, CASES[name]) for child in pair)
    assert ours == stock


def random_request(dice: random.Random) -> bytes:
    """Any request whose reply is no secret."""
    cache_type, cache_id = dice.choice(TYPES), dice.choice(IDS)
    return dice.choice(
        [
            update(cache_type, cache_id, dice.randbytes(dice.choice(SIZES))),
            lookup(cache_type, cache_id),
            lookup(cache_type, cache_id),
            delete(cache_type, cache_id),
            policy(cache_type),
            seed(dice.choice([0, 256, -1])),
            tktkey(dice.randbytes(dice.choice([1, 15, 16, 17]))),
        ]
    )


def test_random_requests(pair: tuple[MasterChild, MasterChild]) -> None:
    """A long conversation with both, over several connections."""
    dice = random.Random(4)
    connections = [[Connection(str(child.socket)) for _ in range(4)] for child in pair]
    for number in range(RANDOM_REQUESTS):
        request, which = random_request(dice), dice.randrange(4)
        if number % MOST_MISTAKES == 0:  # ours disconnects a client that makes more
            for each, child in zip(connections, pair):
                each[number // MOST_MISTAKES % 4].close()
                each[number // MOST_MISTAKES % 4] = Connection(str(child.socket))
        stock, ours = (comparable(each[which].ask(request)) for each in connections)
        assert ours == stock, (number, request[:200])
    for connection in (c for each in connections for c in each):
        connection.close()


# One after the other.


def reads_show(directory: Path) -> bool:
    """Whether the time of the last read is kept in this file system."""
    path = directory / "scratch"
    path.write_bytes(b"x")
    os.utime(path, (1, path.stat().st_mtime))
    path.read_bytes()
    shows = path.stat().st_atime > 1
    path.unlink()
    return shows


def serves(child: MasterChild) -> None:
    """Wait until it has answered; by then the exchange file was read and written."""
    with Connection(str(child.socket)) as connection:
        assert connection.ask(policy(b"smtp")).startswith(b"status\x000\0")
        wait_until(lambda: len(child.messages) >= 2, PATIENCE)


@BOTH
def test_the_exchange_file_is_handed_on(stock: bool) -> None:
    """From one to the other and back: each reads what the other left, and leaves 1024 new bytes."""
    with MasterChild(stock=stock) as child:
        path = child.data / "prng_exch"
        serves(child)
        for _ in range(3):
            child.stop()
            left = path.read_bytes()
            assert len(left) == 1024
            os.utime(path, (1, path.stat().st_mtime))
            child.start_other()
            serves(child)
            wait_until(lambda old=left: path.read_bytes() != old, PATIENCE)  # type: ignore[misc]
        assert child.log_lines("warning|error|fatal|panic") == []


@BOTH
def test_the_exchange_file_is_taken_up(stock: bool) -> None:
    """A program reads the content before it writes."""
    with MasterChild(stock=not stock) as child:
        if not reads_show(child.data):
            pytest.skip("this file system keeps no time of the last read")
        path = child.data / "prng_exch"
        serves(child)
        child.stop()
        os.utime(path, (1, path.stat().st_mtime))
        child.start_other()
        serves(child)
        wait_until(lambda: path.stat().st_atime > 1, PATIENCE)


def test_cache_files_do_not_meet() -> None:
    """A stock that comes back finds its own files, and nothing of ours is in its way."""
    with MasterChild(stock=True) as child:
        with Connection(str(child.socket)) as connection:
            connection.ask(update(b"smtp", b"id", b"stock's session"))
        child.stop()
        stocks = {path: path.read_bytes() for path in child.data.glob("*.db")}
        assert len(stocks) == 2
        child.start_other()
        with Connection(str(child.socket)) as connection:
            connection.ask(update(b"smtp", b"id", b"our session"))
        child.stop()
        assert {path: path.read_bytes() for path in child.data.glob("*.db")} == stocks
        child.start_other()
        serves(child)
        assert child.log_lines("warning|error|fatal|panic") == []
