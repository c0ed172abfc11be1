"""main.cf and master.cf as seen from outside: where files go, what is logged, and as whom.

Where stock tlsmgr(8) does the same, both are tested, and their texts compared.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from support.launcher import BOOTSTRAP, launcher
from support.master_child import BOTH, NEEDS_POSTFIX, PATIENCE, MasterChild
from support.postfix_instance import PostfixInstance
from support.postfix_sandbox import wait_until
from support.raw_client import (
    NO_SESSION,
    OK,
    REFUSED_POLICY,
    Connection,
    delete,
    found,
    lookup,
    policy,
    update,
)
from support.settled_files import write_settled

from tlsmgr.log import INFO
from tlsmgr.logsockets import Postlog

pytestmark = NEEDS_POSTFIX

SMTP, SMTPD = "smtp_tls_session_cache_database", "smtpd_tls_session_cache_database"


def roots_directory(child: MasterChild) -> Path:
    """A directory that is not mail_owner's."""
    path = child.directory / "roots"
    path.mkdir()
    return path


def own_texts(child: MasterChild, pattern: str) -> list[str]:
    """Without the info line that says where our file is, and with equal names of directories."""
    texts = [text for text in child.texts(pattern) if " is kept in " not in text]
    return [
        text.replace(str(child.data), "DATA").replace(str(child.directory), "HERE")
        for text in texts
    ]


# data_directory.

REDIRECTED = [
    "warning: request to update file HERE/roots/exchange in non-postfix directory HERE/roots",
    "warning: redirecting the request to postfix-owned data_directory DATA",
    "warning: request to update table btree:HERE/roots/cache in non-postfix directory HERE/roots",
    "warning: redirecting the request to postfix-owned data_directory DATA",
]


@BOTH
def test_files_in_directories_of_others_are_redirected(stock: bool) -> None:
    child = MasterChild(stock=stock, caches=[])
    roots = roots_directory(child)
    child.main_cf.update(
        {SMTP: f"btree:{roots}/cache", "tls_random_exchange_name": f"{roots}/exchange"}
    )
    with child:
        with Connection(str(child.socket)) as connection:
            assert connection.ask(update(b"smtp", b"id", b"session")) == OK
            assert connection.ask(lookup(b"smtp", b"id")) == found(b"session")
        assert child.stop() == 0
        assert own_texts(child, "warning|error|fatal|panic") == REDIRECTED
        assert list(roots.iterdir()) == []
        names = {path.name for path in child.data.iterdir()}
        assert names >= {"exchange", "cache.db" if stock else "cache.sessions"}


# Databases.


@pytest.mark.parametrize("kind", ["btree", "hash", "lmdb", "dbm", "sdbm", ""])
def test_types_that_select_our_store(kind: str) -> None:
    """One info line says so."""
    child = MasterChild(caches=[])
    table = f"{kind}:{child.data}/cache" if kind else f"{child.data}/cache"
    child.main_cf[SMTP] = table
    with child:
        with Connection(str(child.socket)) as connection:
            assert connection.ask(update(b"smtp", b"id", b"session")) == OK
            assert connection.ask(lookup(b"smtp", b"id")) == found(b"session")
        shown = f"{kind or 'hash'}:{child.data}/cache"
        assert child.texts("TLS session cache") == [
            f"smtp TLS session cache {shown} is kept in {child.data}/cache.sessions"
        ]


@BOTH
@pytest.mark.parametrize(
    ("database", "error"),
    [
        ("nosuch:/x", "unsupported dictionary type: nosuch"),
        ("btree:/nonexistent/cache", None),
    ],
)
def test_a_cache_that_cannot_be_kept(stock: bool, database: str, error: str | None) -> None:
    """One error at the start; the cache then has nothing, and the others work."""
    with MasterChild(stock=stock, caches=["smtp"], parameters={SMTPD: database}) as child:
        with Connection(str(child.socket)) as connection:
            for _ in range(3):
                assert b"\0cachable\x001\0" in connection.ask(policy(b"smtpd"))
                assert connection.ask(update(b"smtpd", b"id", b"session")) == OK
                assert connection.ask(lookup(b"smtpd", b"id")) == NO_SESSION
            assert connection.ask(update(b"smtp", b"id", b"session")) == OK
            assert connection.ask(lookup(b"smtp", b"id")) == found(b"session")
        assert child.stop() == 0
        errors = child.texts("error: ")
        assert len(errors) == 1
        if error:
            assert errors == [f"error: {error}"]
        if not stock:
            assert child.texts("warning|fatal|panic") == []


def test_a_table_that_is_only_read() -> None:
    """It is fatal to stock; here it is one more that cannot be kept."""
    with MasterChild(parameters={SMTPD: "static:x"}) as child:
        with Connection(str(child.socket)) as connection:
            assert connection.ask(lookup(b"smtpd", b"id")) == NO_SESSION
        assert child.texts("error: ") == ["error: unsupported dictionary type: static"]


@BOTH
def test_a_cache_that_cannot_be_kept_may_be_fatal(stock: bool) -> None:
    parameters = {SMTPD: "nosuch:/x", "daemon_table_open_error_is_fatal": "yes"}
    with MasterChild(stock=stock, parameters=parameters) as child:
        assert child.wait(PATIENCE) == 1
        assert child.texts("fatal") == ["fatal: unsupported dictionary type: nosuch"]


@BOTH
def test_one_database_for_two_caches(stock: bool) -> None:
    child = MasterChild(stock=stock, caches=["smtpd", "smtp"])
    child.main_cf["lmtp_tls_session_cache_database"] = child.main_cf[SMTP]
    with child:
        assert child.wait(PATIENCE) == 1
        text = "fatal: do not use the same TLS cache file btree:DATA/smtp_scache for smtp and lmtp"
        assert own_texts(child, "fatal") == [text]


# Log lines about a cache.

TIME = re.compile(r"time=\d+")


OURS_ALONE = re.compile(r"statistics: |tlsmgr \S+ starts: |starting with new keys: ")
AT_START = re.compile("open |warning: unknown |tlsmgr_cache_run_event: ")


def conversation(child: MasterChild, speaks: bool) -> list[str]:
    """The log lines of some requests, without times; sorted, those of the start."""
    with Connection(str(child.socket)) as connection:
        for cache_id in (b"id", b"smtp&[192.0.2.1]:25&\xc3\xa9&", b"new\nline", b""):
            assert connection.ask(lookup(b"smtp", cache_id)) == NO_SESSION
            assert connection.ask(update(b"smtp", cache_id, b"session of 21 bytes..")) == OK
            assert connection.ask(lookup(b"smtp", cache_id)) == found(b"session of 21 bytes..")
            assert connection.ask(delete(b"smtp", cache_id)) == OK
            assert connection.ask(lookup(b"smtpd", cache_id)) == NO_SESSION
    for cache_type in ("smtpd", "smtp") if speaks else ("smtpd",):
        child.wait_log(f"start TLS {cache_type} session cache cleanup")
    child.wait_log("lookup smtpd session id=$")
    child.stop()
    texts = [TIME.sub("time=T", text) for text in own_texts(child, "")]
    texts = [text for text in texts if not OURS_ALONE.match(text)]
    of_start = [text for text in texts if AT_START.match(text)]
    return [text for text in texts if not AT_START.match(text)] + sorted(of_start)


@pytest.mark.parametrize(
    ("level", "speaks"),
    [("2", 1), ("cache", 1), ("0, Debug", 1), ("1", 0), ("none,,summary", 0), ("5 x", 0)],
)
def test_tls_log_levels(level: str, speaks: bool) -> None:
    """The same lines as stock's about each request, in the same order, or none."""
    parameters = {"smtp_tls_loglevel": level, "smtpd_tls_loglevel": "2"}
    lines = []
    for stock in (True, False):
        with MasterChild(stock=stock, parameters=parameters) as child:
            lines.append(conversation(child, bool(speaks)))
    assert lines[1] == lines[0]
    assert any("smtp session id" in line for line in lines[1]) == speaks


# A log that is not read, or not at once.


def test_nobody_reads_the_log() -> None:
    """No client waits for that. Stock's do."""
    options = ("-l", "-t", "unix", "-u")
    with MasterChild(options=options, reads_log=False) as child:
        with Connection(str(child.socket)) as connection:
            for _ in range(100):
                assert connection.ask(policy(b"bogus")) == REFUSED_POLICY
        assert child.stop() == 0


def test_a_busy_reader_of_the_log_gets_every_line(tmp_path: Path) -> None:
    """At most net.unix.max_dgram_qlen datagrams wait for postlogd(8), by default ten."""
    path, lines = str(tmp_path / "postlog"), []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(path)

        def read() -> None:
            time.sleep(0.01)  # it is busy with other lines, for a part of what a process may wait
            while line := reader.recv(1000):
                lines.append(line)

        thread = threading.Thread(target=read)
        thread.start()
        log = Postlog((path,), "mail.test")
        for _ in range(100):
            log.write(INFO, "postfix/tlsmgr", b"text")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", path)
        thread.join()
        log.close()
    assert len(lines) == 100


# The whole of it, in a Postfix system.


def test_in_a_system() -> None:
    """MAIL_CONFIG, multi_instance_name in the tag, -o in master.cf, tlsmgr.cf."""
    with launcher() as path:
        options = (
            "-o smtp_tls_session_cache_timeout=2h -o { smtp_tls_loglevel = cache, none }"
            " -o lmtp_tls_session_cache_timeout=${x?{1}:{3h}}"
        )
        postfix = PostfixInstance(
            tlsmgr=f"{path} {options}",
            parameters={
                "multi_instance_name": "postfix-second",
                "smtp_tls_session_cache_timeout": "bad, and overridden",
            },
        )
        write_settled(postfix.config / "tlsmgr.cf", "tlsmgr_worker_processes = 3\n")
        with postfix:
            with Connection(str(postfix.socket)) as connection:
                assert b"\x007200\0" in connection.ask(policy(b"smtp"))
                assert b"\x0010800\0" in connection.ask(policy(b"lmtp"))
                assert connection.ask(update(b"smtp", b"id", b"session")) == OK
            lines = postfix.wait_log("put smtp session id=id")
            tag = re.search(r" mail postfix-second/tlsmgr\[(\d+)\]: ", lines[0])
            assert tag
            (parent,) = [
                p
                for p in postfix.processes()
                if p.ppid() == postfix.master_pid() and BOOTSTRAP in p.cmdline()
            ]
            wait_until(lambda: len(parent.children()) == 5, PATIENCE)  # three are workers
            assert int(tag[1]) in {worker.pid for worker in parent.children()}
            assert os.environ.get("MAIL_CONFIG") != parent.environ()["MAIL_CONFIG"]
            assert parent.environ()["MAIL_CONFIG"] == str(postfix.config)
            started = rf"postfix-second/tlsmgr\[{parent.pid}\]: tlsmgr \S+ starts: 3 workers"
            assert len(postfix.log_lines(started)) == 1
            assert len(postfix.log_lines("postfix-second/tlsmgr.*: open smtp TLS cache")) == 1
            assert postfix.complaints() == []
            assert postfix.stop() == []


def test_wake_ups_of_master() -> None:
    """The first comes as soon as a client has started the service; master is content."""
    with launcher() as path, PostfixInstance(tlsmgr=path) as postfix:
        write_settled(postfix.config / "tlsmgr.cf", "tlsmgr_statistics_interval = 1s\n")
        with Connection(str(postfix.socket)) as connection:
            assert connection.ask(policy(b"smtp"))
            postfix.wait_log(r"statistics: .*wakeups=1( |$)")
            assert connection.ask(policy(b"smtp"))
        assert postfix.log_lines("unix_trigger_event|partial status|ignoring status") == []
