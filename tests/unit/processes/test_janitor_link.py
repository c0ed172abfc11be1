"""Messages from the janitor to the parent, and the descriptors that come with them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlsmgr.processes.janitor import (
    FATAL,
    LOCATED,
    MADE,
    FileLocation,
    Link,
    Located,
    Message,
    make_links,
)
from tlsmgr.sessions.file import CLOSED


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    """The parent's end and the janitor's."""
    pair = make_links()
    yield pair
    for link in pair:
        link.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_messages_come_whole_and_in_order(links: tuple[Link, Link]) -> None:
    parent, janitor = links
    janitor.send(Message(MADE))
    janitor.send(Message(FATAL, text="x" * 5000))
    assert parent.receive(0.0) == Message(MADE)
    assert parent.receive(0.0) == Message(FATAL, text="x" * 1000)
    assert parent.receive(0.0) is None
    assert parent.receive(0.01) is None


def test_no_janitor_is_no_message(links: tuple[Link, Link]) -> None:
    parent, janitor = links
    janitor.close()
    assert parent.receive(0.0) is None


def test_directories_are_passed(links: tuple[Link, Link], directory: int) -> None:
    parent, janitor = links
    sent = Located(
        FileLocation(directory, "exchange"),
        (FileLocation(-1, "x"), None, FileLocation(directory, "smtp")),
    )
    janitor.send(Message(LOCATED, sent))
    message = parent.receive(0.0)
    assert message is not None
    located = message.located
    assert located is not None
    assert located.exchange is not None
    closed, none, smtp = located.caches
    assert (none, closed) == (None, FileLocation(CLOSED, "x"))
    assert smtp is not None
    assert (located.exchange.name, smtp.name) == ("exchange", "smtp")
    assert located.descriptors() == {located.exchange.descriptor, smtp.descriptor}
    assert len(located.descriptors() | {directory}) == 3
    for descriptor in located.descriptors():
        assert os.fstat(descriptor).st_ino == os.fstat(directory).st_ino
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_no_exchange_file(links: tuple[Link, Link], directory: int) -> None:
    parent, janitor = links
    janitor.send(Message(LOCATED, Located(None, ())))
    assert parent.receive(0.0) == Message(LOCATED, Located(None, ()))


def test_descriptors_that_the_parent_could_not_take(
    links: tuple[Link, Link], directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was out of descriptors: that directory can't be used, and nobody ends."""
    parent, janitor = links
    janitor.send(Message(LOCATED, Located(FileLocation(directory, "exchange"), ())))
    receive = socket.recv_fds

    def receive_none(*arguments: int) -> tuple[bytes, list[int], int, object]:
        data, found, flags, address = receive(*arguments)  # type: ignore[arg-type]
        for descriptor in found:
            os.close(descriptor)
        return data, [], flags, address

    monkeypatch.setattr(socket, "recv_fds", receive_none)
    message = parent.receive(0.0)
    assert message == Message(LOCATED, Located(FileLocation(CLOSED, "exchange"), ()))
