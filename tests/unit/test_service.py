"""The meaning of the six requests, on real caches, keys and pool, with time passed in."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.cache_files import CacheFiles

from tlsmgr.prng.pool import Pool
from tlsmgr.service import (
    CacheType,
    Context,
    Deferred,
    Refusal,
    answer_seeds,
    commit_changes,
    end_lookups,
    handle,
    refuse,
)
from tlsmgr.sessions.cache import SessionCache
from tlsmgr.sessions.file import StoreBusy
from tlsmgr.sessions.seal import Nonces
from tlsmgr.sessions.store import Batch, Store
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import INDEX, Stats
from tlsmgr.tickets import TicketKeys
from tlsmgr.wire import Delete, Lookup, Malformed, Policy, Request, Seed, TicketKey, Update

NOW = 1_795_220_454
T = 3600
OK, FAILED, BAD = (b"status\x00%d\x00" % status for status in (0, 4294967295, 4294967294))


class Bench:
    """A context as a worker has it: smtp and smtpd configured, lmtp known and without a cache."""

    def __init__(
        self, directory: Path, smtpd_timeout: int = T, kernel: Callable[[int], bytes] = os.getrandom
    ) -> None:
        self._files = []
        caches = {}
        for cache_type in (b"smtp", b"smtpd"):
            place = directory / cache_type.decode()
            place.mkdir()
            files = CacheFiles(place, timeout=T)
            self._files.append(files)
            caches[cache_type] = files.cache()
        memory = SharedMemory(1 << 20)
        pool = Pool(memory, 2, kernel)
        self.counts = Stats(memory, 2)
        self.context = Context(
            {
                b"smtpd": CacheType(smtpd_timeout, caches[b"smtpd"]),
                b"smtp": CacheType(T, caches[b"smtp"]),
                b"lmtp": CacheType(T, None),
            },
            tuple(caches.values()),
            TicketKeys(memory, 2, smtpd_timeout, pool.extract),
            pool,
            self.counts.row(1),
            memory.carve(1),
        )
        self.complaints: list[str] = []

    def answer(self, *requests: Request, now: int = NOW) -> list[bytes]:
        """The replies as of one turn of a worker."""
        replies: dict[int, bytes] = {}
        seeds: dict[int, Seed] = {}
        deferred: dict[int, Deferred] = {}
        for at, request in enumerate(requests):
            reply = handle(self.context, request, now)
            if isinstance(reply, Refusal):
                self.complaints.append(reply.complaint)
                reply = reply.reply
            kind = {Seed: seeds, Deferred: deferred, bytes: replies}[type(reply)]
            kind[at] = reply  # type: ignore[index]
        replies.update(zip(seeds, answer_seeds(self.context, list(seeds.values()))))
        end_lookups(self.context)
        replies.update(zip(deferred, commit_changes(self.context, list(deferred.values()), now)))
        return [replies[at] for at in range(len(requests))]

    def count(self, name: str) -> int:
        """The counts."""
        return int(self.context.counts[INDEX[name]])

    def close(self) -> None:
        for files in self._files:
            files.remove()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def seed_in(reply: bytes) -> bytes:
    assert reply.startswith(OK + b"seed\0")
    return base64.b64decode(reply[len(OK) + 5 : -2], validate=True)


# ------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("size", [1, 2, 32, 254, 255])
def test_seed(bench: Bench, size: int) -> None:
    (reply,) = bench.answer(Seed(size))
    assert len(seed_in(reply)) == size


@pytest.mark.parametrize("size", [0, -1, -2, 256, 1_000_000, 2**31 - 1, -(2**31)])
def test_bad_seed(bench: Bench, size: int) -> None:
    assert bench.answer(Seed(size)) == [BAD + b"seed\0\0\0"]
    assert bench.complaints == [f'bogus seed length "{size}" in "seed" request']


def test_each_seed_of_a_turn_is_its_own(bench: Bench) -> None:
    sizes = [255, 1, 32, 32, 32, 16] * 50
    seeds = [seed_in(reply) for reply in bench.answer(*map(Seed, sizes))]
    assert [len(seed) for seed in seeds] == sizes
    whole = b"".join(seeds)
    chunks = [whole[at : at + 16] for at in range(0, len(whole) - 16, 16)]
    assert len(set(chunks)) == len(chunks), "no byte is given to two"
    assert answer_seeds(bench.context, []) == []


def test_more_seeds_than_one_extract_may_give(bench: Bench) -> None:
    seeds = [seed_in(reply) for reply in bench.answer(*[Seed(255)] * 600)]
    assert {len(seed) for seed in seeds} == {255}
    assert len(set(seeds)) == 600


def test_no_entropy_is_status_minus_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    working = [True]

    def kernel(count: int) -> bytes:
        if not working[0]:
            raise OSError(5, "Input/output error")
        return os.getrandom(count)

    bench = Bench(tmp_path, kernel=kernel)
    working[0] = False
    assert bench.answer(Seed(32), Seed(8)) == [FAILED + b"seed\0\0\0"] * 2
    assert bench.answer(TicketKey(b"")) == [FAILED + b"keybuf\0\0\0"]
    assert bench.answer(Policy(b"smtp")) == [OK + b"cachable\x001\0timeout\x003600\0\0"]
    lines = capfd.readouterr().err
    for what in ("2 requests", "a ticket key"):
        assert f"warning: no random bytes for {what}: " in lines
    working[0] = True
    assert len(seed_in(bench.answer(Seed(32))[0])) == 32
    bench.close()


# ------------------------------------------------------------------------------------------ policy


def test_policy(bench: Bench) -> None:
    assert bench.answer(Policy(b"smtp")) == [OK + b"cachable\x001\0timeout\x003600\0\0"]
    assert bench.answer(Policy(b"lmtp")) == [OK + b"cachable\x000\0timeout\x003600\0\0"]
    assert bench.complaints == []
    for cache_type in (b"", b"bogus", b"SMTP", b"smtp ", b"\xff"):
        assert bench.answer(Policy(cache_type)) == [BAD + b"cachable\x000\0timeout\x000\0\0"]
    assert bench.complaints[1] == 'bogus cache type "bogus" in "policy" request'
    assert len(bench.complaints) == 5


def test_policy_of_a_cache_without_a_file(tmp_path: Path) -> None:
    """As in stock: it is cachable, updates are accepted, and nothing is ever found."""
    bench = Bench(tmp_path)
    smtp = bench.context.cache_types[b"smtp"].cache
    assert smtp is not None
    broken = SessionCache(smtp.rules, smtp._shared, None, Nonces(1))
    bench.context = replace(
        bench.context, cache_types={b"smtp": CacheType(T, broken)}, caches=(broken,)
    )
    assert bench.answer(
        Policy(b"smtp"),
        Update(b"smtp", b"id", b"session"),
        Lookup(b"smtp", b"id"),
        Delete(b"smtp", b"id"),
    ) == [
        OK + b"cachable\x001\0timeout\x003600\0\0",
        OK + b"\0",
        FAILED + b"session\0\0\0",
        FAILED + b"\0",
    ]
    bench.close()


# ---------------------------------------------------------------------------------------- sessions


def test_life_of_a_session(bench: Bench) -> None:
    assert bench.answer(Lookup(b"smtp", b"id")) == [FAILED + b"session\0\0\0"]
    assert bench.answer(Update(b"smtp", b"id", b"hello")) == [OK + b"\0"]
    assert bench.answer(Lookup(b"smtp", b"id")) == [OK + b"session\0aGVsbG8=\0\0"]
    assert bench.answer(Lookup(b"smtpd", b"id")) == [FAILED + b"session\0\0\0"]
    assert bench.answer(Delete(b"smtp", b"id")) == [OK + b"\0"]
    assert bench.answer(Delete(b"smtp", b"id")) == [FAILED + b"\0"]
    assert bench.answer(Update(b"smtp", b"id", b"")) == [OK + b"\0"]
    assert bench.answer(Lookup(b"smtp", b"id")) == [OK + b"session\0\0\0"]


def test_expiry(bench: Bench) -> None:
    bench.answer(Update(b"smtp", b"id", b"hello"))
    assert bench.answer(Lookup(b"smtp", b"id"), now=NOW + T) == [OK + b"session\0aGVsbG8=\0\0"]
    assert bench.answer(Lookup(b"smtp", b"id"), now=NOW + T + 1) == [FAILED + b"session\0\0\0"]
    assert bench.answer(Delete(b"smtp", b"id"), now=NOW + T + 1) == [FAILED + b"\0"], "it is gone"


def test_changes_of_a_turn_keep_their_order_and_their_cache(bench: Bench) -> None:
    turn: list[Request] = [
        Update(b"smtp", b"a", b"1"),
        Delete(b"smtpd", b"a"),
        Update(b"smtpd", b"a", b"2"),
        Delete(b"smtp", b"a"),
        Delete(b"smtp", b"a"),
        Update(b"smtp", b"b", b"3"),
    ]
    done, failed = OK + b"\0", FAILED + b"\0"
    assert bench.answer(*turn) == [done, failed, done, done, failed, done]
    assert bench.answer(Lookup(b"smtpd", b"a")) == [OK + b"session\0Mg==\0\0"]
    assert bench.answer(Lookup(b"smtp", b"a")) == [FAILED + b"session\0\0\0"]
    assert bench.count("batches") == 2


def test_updates_that_were_dropped_are_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are answered as done all the same."""

    def be_busy(store: Store) -> Batch:
        raise StoreBusy("another process did not finish writing in time")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "writing", be_busy)
        answers = bench.answer(
            Update(b"smtp", b"a", b"1"), Update(b"smtpd", b"b", b"2"), Delete(b"smtp", b"c")
        )
    assert answers == [OK + b"\0", OK + b"\0", FAILED + b"\0"]
    assert bench.count("dropped") == 2
    bench.answer(Update(b"smtp", b"a", b"1"))
    assert bench.count("dropped") == 2


@pytest.mark.parametrize("cache_type", [b"lmtp", b"bogus", b""])
def test_no_such_cache(bench: Bench, cache_type: bytes) -> None:
    assert bench.answer(
        Lookup(cache_type, b"id"), Update(cache_type, b"id", b"s"), Delete(cache_type, b"id")
    ) == [BAD + b"session\0\0\0", BAD + b"\0", BAD + b"\0"]
    if cache_type == b"lmtp":
        assert bench.complaints == [""] * 3, "it is known, and merely not configured"
    else:
        text = cache_type.decode()
        assert bench.complaints == [
            f'bogus cache type "{text}" in "{name}" request'
            for name in ("lookup", "update", "delete")
        ]


# ------------------------------------------------------------------------------------- ticket keys


def test_ticket_keys(bench: Bench) -> None:
    (reply,) = bench.answer(TicketKey(b""))
    key = base64.b64decode(reply[len(OK) + 7 : -2])
    assert struct.unpack("=q", key[80:]) == (NOW + T // 2 - 1,)
    assert bench.answer(TicketKey(b""), TicketKey(key[:16])) == [reply, reply]
    assert bench.answer(TicketKey(b"?" * 16)) == [FAILED + b"keybuf\0\0\0"]
    assert bench.answer(TicketKey(key[:16]), now=NOW + T) == [FAILED + b"keybuf\0\0\0"]
    assert (bench.count("tktkey"), bench.count("unknown_keys")) == (5, 2)
    assert bench.complaints == []
    for length in (1, 15, 17, 88):
        assert bench.answer(TicketKey(bytes(length))) == [BAD + b"keybuf\0\0\0"]
        assert bench.complaints.pop() == f"invalid session ticket key name length: {length}"


def test_no_file_is_touched_while_a_file_system_blocks(bench: Bench) -> None:
    """Lookups miss, and changes are not done; everything else goes on."""
    assert bench.answer(Update(b"smtp", b"id", b"old")) == [OK + b"\0"]
    bench.context.files_blocked[0] = 1
    assert bench.answer(Lookup(b"smtp", b"id")) == [FAILED + b"session\0\0\0"]
    assert bench.answer(Update(b"smtp", b"id", b"new"), Delete(b"smtp", b"id")) == [
        FAILED + b"\0",
        FAILED + b"\0",
    ]
    assert bench.count("dropped") == 1
    assert bench.count("batches") == 1
    assert len(seed_in(bench.answer(Seed(8))[0])) == 8
    assert bench.answer(Policy(b"smtp")) == [OK + b"cachable\x001\0timeout\x003600\0\0"]
    bench.context.files_blocked[0] = 0
    assert bench.answer(Lookup(b"smtp", b"id")) == [OK + b"session\0b2xk\0\0"]


def test_a_read_that_is_open_when_files_block_ends_after_that(bench: Bench) -> None:
    """To end it writes to the lock table; and only a cache that was looked into has one."""
    bench.answer(Update(b"smtp", b"id", b"old"))
    handle(bench.context, Lookup(b"smtp", b"id"), NOW)
    (cache,) = bench.context.looked_up
    bench.context.files_blocked[0] = 1
    assert not end_lookups(bench.context)
    assert bench.context.looked_up == {cache}
    bench.context.files_blocked[0] = 0
    assert not end_lookups(bench.context)
    assert not bench.context.looked_up
    handle(bench.context, Lookup(b"smtp", b"id"), NOW + T + 1)
    assert end_lookups(bench.context), "it has expired"


def test_no_tickets_without_sessions(tmp_path: Path) -> None:
    bench = Bench(tmp_path, smtpd_timeout=0)
    assert bench.answer(TicketKey(b""), TicketKey(bytes(16))) == [FAILED + b"keybuf\0\0\0"] * 2
    assert bench.answer(Policy(b"smtpd")) == [OK + b"cachable\x000\0timeout\x000\0\0"]
    bench.close()


# ------------------------------------------------------------------------------------------- other


def test_refusal_has_the_shape_of_the_request() -> None:
    shapes = {
        None: b"\0",
        Seed: b"seed\0\0\0",
        Policy: b"cachable\x000\0timeout\x000\0\0",
        Lookup: b"session\0\0\0",
        Update: b"\0",
        Delete: b"\0",
        TicketKey: b"keybuf\0\0\0",
    }
    for shape, rest in shapes.items():
        assert refuse(Malformed(shape, "some complaint")) == BAD + rest


def test_counters(bench: Bench) -> None:
    bench.answer(Seed(1), Seed(0), Policy(b"smtp"), TicketKey(b""))
    bench.answer(Update(b"smtp", b"id", b"s"), Delete(b"smtp", b"no"))
    bench.answer(Lookup(b"smtp", b"id"), Lookup(b"smtp", b"no"))
    names = ("seed", "policy", "lookup", "update", "delete", "tktkey", "batches")
    assert [bench.count(name) for name in names] == [2, 1, 2, 1, 1, 1, 1]
