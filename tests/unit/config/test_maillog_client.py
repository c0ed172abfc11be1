"""Where the log goes: by the environment at first, by main.cf after that, with real sockets."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlsmgr import log
from tlsmgr.config import maillog_client
from tlsmgr.config.load import Configuration, load


@pytest.fixture(autouse=True)
def route() -> Iterator[None]:
    """The log of this process as it was."""
    before = log.use(log.Stderr())
    yield
    log.restore(before)


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    """A system log and two postlog sockets."""
    (tmp_path / "queue/public").mkdir(parents=True)
    listeners = {}
    for name in ("dev_log", "early", "queue/public/postlog"):
        listeners[name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listeners[name].bind(str(tmp_path / name))
        listeners[name].setblocking(False)
    yield listeners
    for listener in listeners.values():
        listener.close()


def one_line(sockets: dict[str, socket.socket]) -> tuple[str, str]:
    """The one line that came, without its time, and where it came."""
    lines = []
    for name, listener in sockets.items():
        try:
            lines.append((name, listener.recv(65536).decode()))
        except BlockingIOError:
            continue
    assert len(lines) == 1
    name, line = lines[0]
    return name, re.sub(r"[A-Z][a-z]{2} [ 0-9]{2} [0-9:]{8} ", "", line, count=1)


def configuration(directory: Path, *options: str) -> Configuration:
    """A configuration with a queue of its own."""
    options = (f"queue_directory={directory}/queue", "myhostname=mx.example.com", *options)
    return load(str(directory), pytest.fail, overrides=options, optional=True)


@pytest.mark.parametrize(
    ("environment", "where", "line"),
    [
        ({}, "dev_log", "<22>postfix/tlsmgr[{}]: text"),
        ({"MAIL_LOGTAG": "hpf"}, "dev_log", "<22>hpf/tlsmgr[{}]: text"),
        ({"POSTLOG_SERVICE": ""}, "dev_log", "<22>postfix/tlsmgr[{}]: text"),
        ({"POSTLOG_SERVICE": "early"}, "early", "amnesiac postfix/tlsmgr[{}]: text"),
        (
            {"POSTLOG_SERVICE": "early", "POSTLOG_HOSTNAME": "a.b", "MAIL_LOGTAG": "hpf"},
            "early",
            "a hpf/tlsmgr[{}]: text",
        ),
    ],
)
def test_the_environment_says_where_early_lines_go(
    tmp_path: Path,
    sockets: dict[str, socket.socket],
    environment: dict[str, str],
    where: str,
    line: str,
) -> None:
    if environment.get("POSTLOG_SERVICE"):
        environment = {**environment, "POSTLOG_SERVICE": f"{tmp_path}/early"}
    maillog_client.connect_early(environment, "tlsmgr", dev_log=f"{tmp_path}/dev_log")
    log.info("text")
    assert one_line(sockets) == (where, line.format(os.getpid()))


@pytest.mark.parametrize(
    ("options", "where", "line"),
    [
        ((), "dev_log", "<22>postfix/tlsmgr[{}]: ??"),
        (("syslog_name=hpf", "syslog_facility=local0"), "dev_log", "<134>hpf/tlsmgr[{}]: ??"),
        (("smtputf8_enable=yes",), "dev_log", "<22>postfix/tlsmgr[{}]: é"),
        (("compatibility_level=3.6",), "dev_log", "<22>postfix/tlsmgr[{}]: é"),
        (("maillog_file=/var/log/mail",), "queue/public/postlog", "mx postfix/tlsmgr[{}]: ??"),
        (
            ("maillog_file=/dev/stdout", "syslog_name=zz/$service_name"),
            "queue/public/postlog",
            "mx zz/tlsmgr/tlsmgr[{}]: ??",
        ),
        (
            ("maillog_file=/x/y", "maillog_file_prefixes=/a,/x /b"),
            "queue/public/postlog",
            "mx postfix/tlsmgr[{}]: ??",
        ),
    ],
)
def test_main_cf_says_where_lines_go(
    tmp_path: Path,
    sockets: dict[str, socket.socket],
    options: tuple[str, ...],
    where: str,
    line: str,
) -> None:
    conf = configuration(tmp_path, *options)
    maillog_client.connect(conf, "tlsmgr", dev_log=f"{tmp_path}/dev_log")
    log.info("é")
    assert one_line(sockets) == (where, line.format(os.getpid()))


def test_a_file_that_no_prefix_allows_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(log.Fatal) as caught:
        maillog_client.connect(configuration(tmp_path, "maillog_file=/usr/x"), "tlsmgr")
    assert caught.value.text == (
        "maillog_file value '/usr/x' does not match any prefix in maillog_file_prefixes"
    )


def test_the_queue_directory_is_found_from_within(
    tmp_path: Path, sockets: dict[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = configuration(tmp_path, "maillog_file=/var/log/mail")
    (tmp_path / "queue").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    maillog_client.connect(conf, "tlsmgr")
    log.info("text")
    assert one_line(sockets)[0] == "queue/public/postlog"


def test_standard_error_gets_lines_too_when_asked(
    tmp_path: Path, sockets: dict[str, socket.socket], capfd: pytest.CaptureFixture[str]
) -> None:
    conf = configuration(tmp_path)
    maillog_client.connect(conf, "tlsmgr", also_stderr=True, dev_log=f"{tmp_path}/dev_log")
    log.info("text")
    assert one_line(sockets)[0] == "dev_log"
    assert capfd.readouterr().err == f"tlsmgr[{os.getpid()}]: text\n"
