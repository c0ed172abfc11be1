"""What goes over to a successor: messages without an end, and a message that cannot be left."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from support.own_descriptors import own_descriptors
from support.parent_parts import inherited_for

from tlsmgr.prng.pool import EntropyError
from tlsmgr.processes import bridge, succession
from tlsmgr.processes.bridge import Met
from tlsmgr.processes.parking import MOST_CONNECTIONS, NO_BRIDGE, Parked

STRANGER = 12345


def test_strangers_do_not_hold_up_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever may connect may leave one message after another: a start looks at so many only."""
    looks = 0

    def meet(_: int) -> Met:
        nonlocal looks
        looks += 1
        assert looks <= 2 * MOST_CONNECTIONS, "it never ends"
        return Met(Parked(os.memfd_create("test"), NO_BRIDGE, 1, STRANGER), [])

    monkeypatch.setattr(bridge, "meet", meet)
    before = own_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        found = succession.receive((listener,), os.geteuid(), True, 0)
    assert found.message is None
    assert found.refused
    assert own_descriptors() == before
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == succession.MOST_REASONS
    assert all(f"it is from user {STRANGER}" in line for line in lines)


def test_no_random_bytes_for_the_key_that_both_share(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The reload goes on."""

    def fail(size: int) -> bytes:
        raise EntropyError("Input/output error")

    inherited = inherited_for(1)
    monkeypatch.setattr(inherited.ticket_keys, "_extract", fail)
    succession.prepare(inherited, 1_795_220_454)
    assert capfd.readouterr().err.endswith(
        ": warning: no random bytes for a ticket key: Input/output error\n"
    )


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/none/socket", "No such file or directory"),
        (("127.0.0.1", 25), "not a UNIX-domain socket"),
    ],
    ids=["no file", "TCP"],
)
def test_a_message_that_cannot_be_left(
    address: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = own_descriptors()
    succession.leave(inherited_for(1), address, NO_BRIDGE, os.getpid(), 0)
    assert own_descriptors() == before
    assert capfd.readouterr().err.endswith(
        f"warning: cannot hand over sessions and ticket keys: {reason};"
        " the next start has new keys\n"
    )


def test_nobody_listens_any_more(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """There is no successor, and nothing to complain of."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
    succession.leave(inherited_for(1), path, NO_BRIDGE, os.getpid(), 0)
    assert capfd.readouterr().err == ""
