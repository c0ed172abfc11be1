"""The same main.cf read by our package `config` and by Postfix's own tlsmgr(8).

tlsmgr is run with -S, so that it reads one request from standard input, and logs to a socket in the
place of postlogd(8). It needs root, as it changes to mail_owner.
"""

import os
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.settled_files import write_settled

from tlsmgr.config.accounts import check, look_up
from tlsmgr.config.caches import cache_places, cache_settings, session_timeout
from tlsmgr.config.load import load
from tlsmgr.config.redirect import WritableDir, exchange_path
from tlsmgr.log import Fatal, printable

STOCK_TLSMGR = "/usr/lib/postfix/sbin/tlsmgr"
TIMEOUT = "smtp_tls_session_cache_timeout"
POLICY_REQUEST = b"request\0policy\0cache_type\0smtp\0\0"

needs_stock = pytest.mark.skipif(
    not os.path.exists(STOCK_TLSMGR) or os.geteuid() != 0,
    reason="Postfix's tlsmgr is missing, or root is needed to run it",
)

Outcome = tuple[list[str], str]
"""Warnings, and then the answer to a policy request or the text of a fatal error."""


def main_cf(directory: Path, name: str, content: str) -> Path:
    """A configuration directory for one case; its main.cf is at rest, so that it is read once."""
    base = (
        "compatibility_level = 3.6\nmyhostname = host.example.com\nmydomain = example.com\n"
        f"queue_directory = {directory}/queue\ndata_directory = {directory}/data\n"
        f"maillog_file = /var/log/mail\npostlog_service_name = ../../{name}/postlog\n"
    )
    path = directory / name
    path.mkdir()
    write_settled(path / "main.cf", base + content)
    return path


def ours(path: Path, options: tuple[str, ...]) -> Outcome:
    """The outcome of a main.cf with our code."""
    warnings: list[str] = []
    try:
        conf = load(str(path), warnings.append, overrides=options)
        owner = check(conf, look_up(conf))
        writable = WritableDir(owner.name, owner.uid, conf.text("data_directory"))
        exchange_path(conf, writable, warnings.append)
        settings = cache_settings(conf, warnings.append)
        cache_places(conf, settings, writable, warnings.append)
    except Fatal as error:
        result = error.text
    else:
        result = f"timeout {session_timeout(conf.seconds(TIMEOUT))}"
    lines = [printable(line, keep_utf8=True).decode() for line in [*warnings, result]]
    return lines[:-1], lines[-1]


def stock(path: Path, options: tuple[str, ...]) -> Outcome:
    """Return the outcome of Postfix's tlsmgr, which on a busy machine may end without any."""
    tries = (_stock(path, options) for _ in range(3))
    return next((outcome for outcome in tries if outcome[1]), ([], ""))


def _stock(path: Path, options: tuple[str, ...]) -> Outcome:
    """The outcome with Postfix's tlsmgr."""
    arguments = [word for option in options for word in ("-o", option)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as logged:
        (path / "postlog").unlink(missing_ok=True)
        logged.bind(f"{path}/postlog")
        (path / "postlog").chmod(0o666)
        with subprocess.Popen(
            [STOCK_TLSMGR, "-S", "-t", "unix", "-l", *arguments],
            env={"MAIL_CONFIG": str(path), "LANG": "C", "POSTLOG_SERVICE": f"{path}/postlog"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            collector = ThreadPoolExecutor(1)
            lines = collector.submit(collect, logged)
            reply, _ = process.communicate(POLICY_REQUEST, timeout=60)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", f"{path}/postlog")
        texts = [re.sub(r"^.*?/tlsmgr\[[0-9]+\]: ", "", line) for line in lines.result(60)]
    warnings = [text[9:] for text in texts if text.startswith("warning: ")]
    of_store = (" is unavailable. ", "unsupported dictionary type: ")  # the latter since 3.10
    warnings = [text for text in warnings if not any(part in text for part in of_store)]
    fatal = [text[7:] for text in texts if text.startswith("fatal: ")]
    match = re.search(rb"timeout\0([0-9]+)\0", reply)
    return warnings, f"timeout {match[1].decode()}" if match else "".join(fatal)


def collect(logged: socket.socket) -> list[str]:
    """The log lines up to an empty one."""
    return [line.decode(errors="replace") for line in iter(lambda: logged.recv(65536), b"")]
