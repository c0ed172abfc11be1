"""Mail over TLS with our tlsmgr in the place of stock's: sessions are reused, by all programs."""

from __future__ import annotations

import contextlib
import itertools
import smtplib
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.launcher import launcher
from support.mail_traffic import UNWELCOME, deliveries_in_clear
from support.postfix_instance import PostfixInstance, need_postfix

CACHE_TYPES = ("btree", "hash", "lmdb")
TICKET = r"Reusing old session \(RFC 5077 session ticket\)$"
SESSION = r"Reusing old session$"
TLS_1_2 = {"smtp_tls_mandatory_protocols": "<=TLSv1.2"}
NO_TICKET = {"tls_ssl_options": "NO_TICKET"}
KINDS: dict[str, tuple[dict[str, str], str]] = {  # parameters; what smtpd(8) logs
    "tickets": ({}, TICKET),
    "tickets, TLS 1.2": (TLS_1_2, TICKET),
    "server cache": (NO_TICKET, SESSION),
    "server cache, TLS 1.2": ({**NO_TICKET, **TLS_1_2}, SESSION),
}
USUAL = {  # each value of each dimension, and each kind in and out of the jail
    ("btree", False, "tickets"),
    ("lmdb", True, "tickets"),
    ("hash", True, "tickets, TLS 1.2"),
    ("btree", True, "server cache"),
    ("hash", False, "server cache, TLS 1.2"),
}


def matrix() -> Iterator[object]:
    """All combinations; those that are not usual are for a long run."""
    for combination in itertools.product(CACHE_TYPES, (False, True), KINDS):
        cache_type, chroot, kind = combination
        name = f"{cache_type}, {'jail, ' if chroot else ''}{kind}"
        marks = () if combination in USUAL else (pytest.mark.long,)
        yield pytest.param(*combination, id=name, marks=marks)


@pytest.mark.parametrize(("cache_type", "chroot", "kind"), list(matrix()))
def test_sessions_are_reused(cache_type: str, chroot: bool, kind: str) -> None:
    """Three messages: the second and the third reuse the session, and both sides know it."""
    need_postfix(cache_type)
    parameters, smtpds_words = KINDS[kind]
    with (
        launcher() as path,
        PostfixInstance(
            tlsmgr=path, cache_type=cache_type, chroot=chroot, mail=True, parameters=parameters
        ) as postfix,
    ):
        postfix.deliver(3)
        postfix.wait_log(r"/discard\[\d+\]: .*status=sent", 3)
        assert len(postfix.wait_log(r"/smtp\[\d+\]: .*: " + SESSION, 2)) == 2
        assert len(postfix.wait_log(r"/smtpd\[\d+\]: .*: " + smtpds_words, 2)) == 2
        version = "TLSv1.2" if "1.2" in kind else "TLSv1.3"
        assert len(postfix.log_lines(f"TLS connection established to .*: {version} ")) == 3
        assert postfix.complaints() == []
        for cache in ("smtpd", "smtp"):
            assert (postfix.data / f"{cache}_scache.sessions").exists()
        assert postfix.stop() == []


# Many programs at once.

AT_ONCE = 50
SERVICES = """\
tlsproxy  unix - - n - 0 tlsproxy
smtpd     pass - - n - - smtpd
127.0.0.1:{port} inet n - n - 1 postscreen
"""
PARAMETERS = {
    "smtp_tls_connection_reuse": "yes",
    "smtp_connection_cache_on_demand": "no",  # one connection a message all the same
    "postscreen_access_list": "",  # it talks to unsafe_paths alone
    "postscreen_cache_map": "",
    "postscreen_greet_wait": "1s",
    "postscreen_bare_newline_enable": "yes",  # it talks at all, instead of smtpd(8)
}


@pytest.fixture(scope="module")
def screened_port() -> int:
    """A port for postscreen(8) that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def busy(screened_port: int) -> Iterator[PostfixInstance]:
    """A system with tlsproxy(8), postscreen(8), and room for many smtpd(8)."""
    need_postfix("btree")
    with launcher() as path:
        postfix = PostfixInstance(tlsmgr=path, chroot=True, mail=True, parameters=PARAMETERS)
        postfix.master_cf += SERVICES.format(port=screened_port)
        with postfix:
            yield postfix
            assert postfix.log_lines(UNWELCOME) == []
            assert postfix.stop() == []


class TlsClient:
    """A connection by STARTTLS, the session of an earlier one offered."""

    def __init__(
        self, context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None
    ) -> None:
        self.smtp = smtplib.SMTP("127.0.0.1", port, "client.test", timeout=60)
        self.smtp.ehlo()
        code, text = self.smtp.docmd("STARTTLS")
        assert code == 220, text
        assert self.smtp.sock is not None
        self.socket = context.wrap_socket(self.smtp.sock, session=session)
        self.smtp.sock, self.smtp.file = self.socket, None
        self.smtp.ehlo()

    def close(self) -> None:
        """Say good-bye."""
        with contextlib.suppress(smtplib.SMTPException):
            self.smtp.quit()


@pytest.fixture
def context() -> ssl.SSLContext:
    """Of clients that trust everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_fifty_smtpd_at_once(busy: PostfixInstance, context: ssl.SSLContext) -> None:
    """All at work at the same time; what one of them issued every other one takes."""

    def connect(session: ssl.SSLSession | None) -> TlsClient:
        return TlsClient(context, busy.sink_port, session)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        first = list(pool.map(connect, [None] * AT_ONCE))
        assert sum(process.name() == "smtpd" for process in busy.processes()) == AT_ONCE
        sessions = [client.socket.session for client in first]
        assert not any(client.socket.session_reused for client in first)
        list(pool.map(TlsClient.close, first))
        second = list(pool.map(connect, reversed(sessions)))
        assert all(client.socket.session_reused for client in second)
        list(pool.map(TlsClient.close, second))
    assert busy.log_lines(r"/smtpd\[\d+\]: (warning|error)") == []


def test_tlsproxy_for_smtp(busy: PostfixInstance) -> None:
    busy.deliver(3)
    assert len(busy.wait_log(r"/tlsproxy\[\d+\]: .*: " + SESSION, 2)) == 2
    assert deliveries_in_clear(busy.log()) == []


def test_tlsproxy_for_postscreen(
    busy: PostfixInstance, screened_port: int, context: ssl.SSLContext
) -> None:
    """postscreen(8) refuses every recipient of a client that it sees for the first time."""
    session = None
    for number in range(2):
        client = TlsClient(context, screened_port, session)
        session = client.socket.session
        assert client.socket.session_reused == bool(number)
        assert client.smtp.mail("sender@origin.test")[0] == 250
        assert client.smtp.rcpt("someone@destination.test")[0] == 450
        client.close()
    lines = busy.wait_log(r"/tlsproxy\[\d+\]: .*TLS connection established from \[127", 2)
    assert len(lines) == 2
