"""The hand-over message: what goes in comes out, and nothing that is odd is used."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tlsmgr.processes import handover
from tlsmgr.processes.handover import (
    BadMessage,
    CacheMessage,
    Message,
    OtherLayout,
    read,
    seal,
    unpack,
)
from tlsmgr.sessions.file import MarkValues
from tlsmgr.sessions.shared import CacheState, OlderKey

NOW = 1_800_000_000
KEYS = bytes(range(176))
DIGEST_KEY, SEAL_KEY = bytes(range(100, 132)), bytes(range(200, 232))
STATE = CacheState(
    encrypted=True,
    digest_key=DIGEST_KEY,
    older=(OlderKey(255, NOW, SEAL_KEY), OlderKey(0, NOW - 5, SEAL_KEY)),
    mark=MarkValues((1 << 64) - 1, 8, 1 << 40, 1),
)
CACHES = {"smtp": CacheMessage("btree:/var/lib/postfix/smtp_scache", 1 << 27, STATE)}
MESSAGE = Message(
    parent=4711,
    time=NOW,
    ticket_keys=KEYS,
    statistics={"seed": 7},
    caches=CACHES,
    policy={"smtpd_tls_req_ccert": "00"},
)


def content_of(message: Message) -> dict[str, object]:
    """The JSON in it."""
    memory = handover.write(message)
    data = os.pread(memory, 1 << 20, 0)
    os.close(memory)
    content: dict[str, object] = json.loads(data[24:])
    return content


def packed(content: object, magic: bytes = b"tlsmgr-handover\n", layout: int = 1) -> bytes:
    """A message with that content."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("=16sII", magic, layout, len(body)) + body


def changed(**values: object) -> bytes:
    """A good message but for these values."""
    return packed({**content_of(MESSAGE), **values})


def odd_caches() -> Iterator[tuple[str, list[object]]]:
    """Values of a cache, each with one mistake."""
    good = ["btree:x", 1, True, "00" * 32, [[0, 1, "00" * 32]], [1, 2, 3, 1]]
    mistakes: list[tuple[str, int, object]] = [
        ("table", 0, 7),
        ("limit", 1, -1),
        ("flag", 2, 1),
        ("digest key", 3, "00" * 31),
        ("no list of keys", 4, 5),
        ("tag", 4, [[256, 1, "00" * 32]]),
        ("time", 4, [[1, None, "00" * 32]]),
        ("sealing key", 4, [[1, 1, "00" * 33]]),
        ("a key too few values", 4, [[1, 1]]),
        ("mark too short", 5, [1, 2, 3]),
        ("mark too long", 5, [1, 2, 3, 1, 1]),
        ("inode", 5, [1 << 64, 2, 3, 1]),
    ]
    for name, place, value in mistakes:
        yield name, [*good[:place], value, *good[place + 1 :]]
    yield "a value too many", [*good, 1]


@pytest.fixture
def opened() -> Iterator[Callable[[bytes], int]]:
    """Makes sealed files that are closed at the end."""
    made: list[int] = []

    def make(data: bytes) -> int:
        made.append(seal(data))
        return made[-1]

    yield make
    for descriptor in made:
        os.close(descriptor)


@pytest.mark.parametrize("keys", [KEYS, b""], ids=["two keys", "no key"])
def test_what_goes_in_comes_out(keys: bytes) -> None:
    message = Message(
        parent=1, time=NOW, ticket_keys=keys, statistics={"seed": 1 << 59}, caches=CACHES, policy={}
    )
    memory = handover.write(message)
    assert read(memory, NOW) == message
    os.close(memory)


def test_secrets_are_not_shown() -> None:
    for secret in (KEYS, DIGEST_KEY, SEAL_KEY):
        assert secret.hex() not in repr(MESSAGE)
        assert repr(secret)[2:-1] not in repr(MESSAGE)


def test_nobody_can_change_it() -> None:
    memory = handover.write(MESSAGE)
    for change in (
        lambda: os.pwrite(memory, b"x", 0),
        lambda: os.ftruncate(memory, 1),
        lambda: os.ftruncate(memory, 1 << 20),
    ):
        with pytest.raises(PermissionError):
            change()
    assert not os.get_inheritable(memory)
    os.close(memory)


@pytest.mark.parametrize("seconds", [-60, 0, 3600])
def test_times_that_are_plausible(opened: Callable[[bytes], int], seconds: int) -> None:
    assert read(opened(changed()), NOW + seconds) == MESSAGE


@pytest.mark.parametrize("seconds", [-61, 3601, -(1 << 40), 1 << 40])
def test_times_that_are_not(opened: Callable[[bytes], int], seconds: int) -> None:
    with pytest.raises(BadMessage, match="its time is implausible"):
        read(opened(changed()), NOW + seconds)


GOOD = packed(content_of(MESSAGE))
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no message"),
    "one byte": (b"t", "no message"),
    "half a header": (GOOD[:20], "no message"),
    "header only": (GOOD[:24], "length"),
    "short by one": (GOOD[:-1], "length"),
    "long by one": (GOOD + b" ", "length"),
    "another magic": (packed({}, magic=b"something else.."), "no message"),
    "no JSON": (packed(b"\xff\xfe"), "malformed"),
    "NaN": (packed(b"NaN"), "malformed"),
    "nested": (packed(b"[" * 100_000), "malformed"),
    "many digits": (packed(b"9" * 100_000), "malformed"),
    "a list": (packed([]), "malformed"),
    "nothing in it": (packed({}), "malformed"),
    "pid is text": (changed(parent="4711"), "malformed"),
    "pid is true": (changed(parent=True), "malformed"),
    "pid is a fraction": (changed(parent=1.5), "malformed"),
    "pid is negative": (changed(parent=-1), "malformed"),
    "time too large": (changed(time=1 << 61), "malformed"),
    "no ticket keys": (changed(ticket_keys=None), "malformed"),
    "short ticket keys": (changed(ticket_keys="00" * 175), "malformed"),
    "one ticket key": (changed(ticket_keys="00" * 88), "malformed"),
    "long ticket keys": (changed(ticket_keys="00" * 177), "malformed"),
    "not hexadecimal": (changed(ticket_keys="0g" * 176), "malformed"),
    "a policy without text": (changed(policy={"smtpd_tls_req_ccert": 1}), "malformed"),
    "statistics are a list": (changed(statistics=[1]), "malformed"),
    "policy is a list": (changed(policy=[1]), "malformed"),
    "caches are a list": (changed(caches=[1]), "malformed"),
    "a cache is a number": (changed(caches={"smtp": 1}), "malformed"),
    **{
        f"of a cache, {name}": (changed(caches={"smtp": values}), "malformed")
        for name, values in odd_caches()
    },
    "a negative count": (changed(statistics={"seed": -1}), "malformed"),
    "a count too large": (changed(statistics={"seed": (1 << 60) + 1}), "malformed"),
}


@pytest.mark.parametrize("case", BAD)
def test_odd_content(opened: Callable[[bytes], int], case: str) -> None:
    data, reason = BAD[case]
    with pytest.raises(BadMessage, match=reason) as caught:
        read(opened(data), NOW)
    assert not isinstance(caught.value, OtherLayout)
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 60, "and nothing of what it says"


def test_another_layout() -> None:
    """Whatever follows the header."""
    with pytest.raises(OtherLayout, match="its layout is 2, not 1"):
        unpack(packed(b"?", layout=2))


def test_too_long(opened: Callable[[bytes], int]) -> None:
    with pytest.raises(BadMessage, match="no message"):
        read(opened(packed(b" " * (1 << 20))), NOW)


def test_files_that_are_no_message() -> None:
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(memory, GOOD)
    reader, writer = os.pipe()
    here, there = socket.socketpair()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        with pytest.raises(BadMessage, match="not sealed"):
            read(memory, NOW)
        for descriptor in (reader, writer, here.fileno(), null):
            with pytest.raises(BadMessage, match="no memory file"):
                read(descriptor, NOW)
    finally:
        for descriptor in (memory, reader, writer, null):
            os.close(descriptor)
        here.close()
        there.close()
