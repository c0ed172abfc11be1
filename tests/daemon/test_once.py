"""The option -S: one request on standard input, its reply on standard output, as in stock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from support.master_child import BOTH, NEEDS_POSTFIX, PATIENCE, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import (
    NO_SESSION,
    OK,
    Connection,
    data_of,
    delete,
    found,
    lookup,
    policy,
    policy_is,
    seed,
    tktkey,
    update,
)

pytestmark = NEEDS_POSTFIX

ALIKE = {
    "policy": policy(b"smtp"),
    "policy of a bogus type": policy(b"bogus"),
    "lookup": lookup(b"smtp", b"id"),
    "lookup without a cache": lookup(b"lmtp", b"id"),
    "update": update(b"smtp", b"id", b"session"),
    "delete": delete(b"smtp", b"id"),
    "no request": b"reqest\0policy\0\0",
    "two requests": policy(b"smtp") + policy(b"smtpd"),
}
EMPTY = {  # where stock's reply may hold what an earlier one left behind
    "seed of nothing": (seed(0), b"status\x004294967294\0seed\0\0\0"),
    "half a request": (b"request\0seed\0", b"status\x004294967294\0seed\0\0\0"),
    "no key": (tktkey(b"k"), b"status\x004294967294\0keybuf\0\0\0"),
}


@contextlib.contextmanager
def standard_input(data: bytes, *, ends: bool = True) -> Iterator[int]:
    """A pipe with that in it; when it `ends`, nobody holds its other end open."""
    reader, writer = os.pipe()
    os.write(writer, data)
    if ends:
        os.close(writer)
    yield reader
    os.close(reader)
    if not ends:
        os.close(writer)


def ask_once(stock: bool, data: bytes, *arguments: str, ends: bool = True) -> bytes:
    """The reply on standard output."""
    with (
        standard_input(data, ends=ends) as stdin,
        MasterChild(stock=stock, options=["-S"], arguments=arguments, stdin=stdin) as child,
    ):
        assert child.wait(PATIENCE) == 0
        assert child.messages == []
        child.expect_all_gone()
        return child.stdout()


@pytest.mark.parametrize("case", ALIKE)
def test_replies_are_those_of_stock(case: str) -> None:
    reply = ask_once(False, ALIKE[case])
    assert reply.endswith(b"\0\0")
    assert reply == ask_once(True, ALIKE[case])


@pytest.mark.parametrize("case", EMPTY)
def test_refusals_hold_nothing(case: str) -> None:
    request, reply = EMPTY[case]
    assert ask_once(False, request) == reply


WARNINGS = {
    policy(b"bogus"): 'warning: bogus cache type "bogus" in "policy" request',
    b"reqest\0policy\0\0": "warning: unexpected attribute reqest from tlsmgr socket"
    " (expecting: request)",
    policy(b"smtp")[:-1] + b"extra\0x\0\0": "warning: unexpected attribute extra from tlsmgr"
    " socket (expecting: (list terminator))",
}


@pytest.mark.parametrize("request_", WARNINGS, ids=["type", "attribute", "end"])
def test_mistakes_are_logged(request_: bytes) -> None:
    with (
        standard_input(request_) as stdin,
        MasterChild(options=["-S", "-V"], stdin=stdin) as child,
    ):
        assert child.wait(PATIENCE) == 0
        assert child.texts("warning") == [WARNINGS[request_]]


def test_beside_a_daemon_its_files_are_left_alone() -> None:
    """As for a test start. Without one they are used."""
    with MasterChild() as daemon:
        daemon.wait_until_ready()
        path = daemon.data / "smtp_scache.sessions"
        place = ["-o", f"smtp_tls_session_cache_database=btree:{daemon.data}/smtp_scache"]
        with Connection(str(daemon.socket)) as connection:
            assert connection.ask(update(b"smtp", b"id", b"session")) == OK
            with (
                standard_input(lookup(b"smtp", b"id")) as stdin,
                MasterChild(options=["-S", "-V"], stdin=stdin, arguments=place) as child,
            ):
                assert child.wait(PATIENCE) == 0
                assert child.texts("warning|error|fatal|panic") == []
                assert child.stdout() == NO_SESSION
            assert connection.ask(lookup(b"smtp", b"id")) == found(b"session")
        assert daemon.stop() == 0
        path.unlink()
        with (
            standard_input(policy(b"smtp")) as stdin,
            MasterChild(options=["-S", "-V"], stdin=stdin, arguments=place) as child,
        ):
            assert child.wait(PATIENCE) == 0
            assert child.texts("warning|error|fatal|panic") == []
        assert path.exists()


@BOTH
@pytest.mark.parametrize("arguments", [[], ["-u"], ["-c"], ["-c", "-u"]], ids=" ".join)
def test_random_bytes(stock: bool, arguments: list[str]) -> None:
    assert len(data_of(ask_once(stock, seed(32), *arguments), b"seed")) == 32
    assert len(data_of(ask_once(stock, tktkey(), *arguments), b"keybuf")) == 88


@pytest.mark.parametrize("data", [b"", b"W\0", b"W"])
def test_no_request(data: bytes) -> None:
    """Stock aborts."""
    assert ask_once(False, data) == b""


def test_the_exchange_file_is_saved_again_at_the_end() -> None:
    """With what the request has stirred in, and after the seed that it got."""
    reader, writer = os.pipe()
    with MasterChild(options=["-S"], stdin=reader) as child:
        wait_until(child.exchange_file, PATIENCE)
        before = child.exchange_file()
        os.write(writer, seed(32))
        assert child.wait(PATIENCE) == 0
        assert child.exchange_file() != before
    os.close(reader)
    os.close(writer)


@BOTH
def test_input_is_not_read_to_its_end(stock: bool) -> None:
    """Nobody closes the pipe, as when a person types the request."""
    reply = ask_once(stock, policy(b"smtp"), ends=False)
    assert reply == policy_is(1, 3600)
