"""tlsmgrctl: the command itself, run as an operator runs it."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.postfix_instance import StockTlsmgr, postfix_missing
from support.settled_files import empty_configuration, write_settled

from tlsmgr.client import Client
from tlsmgr.ctl import instance
from tlsmgr.ctl.main import COMMANDS, DEFAULT_COMMAND, parse
from tlsmgr.install.instance import SEARCH_PATH

COMMAND = [sys.executable, "-m", "tlsmgr.ctl.main"]
ROOT = CHECKOUT
REQUESTS = ("seed", "policy", "lookup", "update", "delete", "tktkey")
Run = subprocess.CompletedProcess[bytes]


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    if reason := postfix_missing("btree"):
        pytest.skip(reason)
    # Stock neither stores nor finds ids that are not UTF-8, unless it does not check them.
    with StockTlsmgr(parameters={"smtputf8_enable": "no"}) as stock:
        yield stock.socket


def ctl(*arguments: str | bytes | Path, stdin: bytes = b"", **environment: str) -> Run:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, "MAIL_CONFIG": "/nonexistent", **environment},
        input=stdin,
        capture_output=True,
        timeout=60,
    )


def expect_failure(run: Run, status: int, *words: str) -> None:
    """Nothing on standard output, one line on standard error with that text."""
    text = run.stderr.decode()
    assert (run.returncode, run.stdout) == (status, b""), text
    assert text.startswith("tlsmgrctl: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    for word in words:
        assert word in text


def expect_output(run: Run, output: bytes) -> None:
    assert (run.returncode, run.stdout, run.stderr) == (0, output, b"")


# The requests


@pytest.mark.parametrize("cache_id", [b"plain", b"", b"smtp&[::1]:25&x", b"\xff\xfe id"])
def test_session_there_and_back(server: Path, cache_id: bytes) -> None:
    session = bytes(range(256)) * 5
    entry = ("--socket", server)
    expect_output(ctl(*entry, "update", "smtp", cache_id, stdin=session), b"")
    with Client(server) as client:
        assert client.lookup("smtp", cache_id) == session
    expect_output(ctl(*entry, "lookup", "smtp", cache_id, "--raw"), session)
    expect_output(ctl(*entry, "lookup", "smtp", cache_id), base64.b64encode(session) + b"\n")
    expect_output(ctl(*entry, "delete", "smtp", cache_id), b"")
    expect_failure(ctl(*entry, "lookup", "smtp", cache_id), 1, "no such session", "smtp")
    expect_failure(ctl(*entry, "delete", "smtp", cache_id), 1, "no such session", "smtp")


def test_an_id_that_looks_like_an_option(server: Path) -> None:
    ctl("--socket", server, "update", "smtp", "--", "-id", stdin=b"session")
    expect_output(ctl("--socket", server, "lookup", "--raw", "smtp", "--", "-id"), b"session")


def test_seed(server: Path) -> None:
    text = ctl("--socket", server, "seed", "32")
    raw = ctl("--socket", server, "seed", "255", "--raw")
    assert text.returncode == raw.returncode == 0
    assert len(base64.b64decode(text.stdout, validate=False)) == 32
    assert text.stdout.endswith(b"\n")
    assert len(raw.stdout) == 255


def test_policy(server: Path) -> None:
    expect_output(ctl("--socket", server, "policy", "smtp"), b"cachable yes\ntimeout 3600\n")
    expect_output(ctl("--socket", server, "policy", "lmtp"), b"cachable no\ntimeout 3600\n")


def test_ticket_key(server: Path) -> None:
    with Client(server) as client:
        key = client.ticket_key()
    assert key is not None
    expect_output(ctl("--socket", server, "tktkey", "--raw"), key.to_bytes())
    named = ctl("--socket", server, "tktkey", key.name.hex())
    expect_output(named, base64.b64encode(key.to_bytes()) + b"\n")
    expect_failure(ctl("--socket", server, "tktkey", "00" * 16), 1, "no such session ticket key")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["seed", "0"], "(status -2): a seed has 1 to 255 bytes"),
        (["seed", "-1"], "-1 is not an unsigned 32-bit number"),
        (["policy", "bogus"], "(status -2): the cache type is unknown"),
        (["lookup", "lmtp", "id"], "has no database configured"),
        (["update", "lmtp", "id"], "has no database configured"),
        (["delete", "lmtp", "id"], "has no database configured"),
        (["tktkey", "00"], "(status -2): a ticket key name has 0 or 16 bytes"),
    ],
)
def test_refused(server: Path, arguments: list[str], reason: str) -> None:
    expect_failure(ctl("--socket", server, *arguments), 1, reason)


# Finding the server


def test_no_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    run = ctl("--socket", path, "policy", "smtp")
    expect_failure(run, 1, f"connect to {path}: No such file or directory")


def test_options_may_follow_the_request(server: Path) -> None:
    run = ctl("--socket", "/nonexistent", "policy", "smtp", "--socket", server, "--timeout", "9")
    expect_output(run, b"cachable yes\ntimeout 3600\n")


def test_default_socket(server: Path, tmp_path: Path) -> None:
    for state in ("state", "home/.local/state"):
        private = tmp_path / state / "tlsmgr" / "private"
        private.mkdir(parents=True)
        (private / "tlsmgr").symlink_to(server)
    none = empty_configuration(tmp_path / "etc")
    elsewhere, in_home = str(tmp_path / "state"), str(tmp_path / "home")
    for state, home in [(elsewhere, "/nonexistent"), ("", in_home), ("relative", in_home)]:
        run = ctl("policy", "smtp", MAIL_CONFIG=none, XDG_STATE_HOME=state, HOME=home)
        expect_output(run, b"cachable yes\ntimeout 3600\n")


@pytest.fixture
def postfix(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which Postfix is a private instance that has ours enabled."""
    if shutil.which("postconf", path=SEARCH_PATH) is None:
        pytest.skip("Postfix is not installed")
    queue = tmp_path / "queue"
    (queue / "private").mkdir(parents=True)
    write_settled(tmp_path / "main.cf", f"base = {tmp_path}\nqueue_directory = $base/queue\n")
    (tmp_path / "master.cf").write_text("tlsmgr unix - - y 1000? 1 tlsmgr-prefork -v\n")
    tmp_path.chmod(0o755)
    yield {"MAIL_CONFIG": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    (queue / "private").chmod(0o700)


def test_the_postfix_that_has_ours_enabled_comes_first(postfix: dict[str, str]) -> None:
    socket_path = f"{postfix['MAIL_CONFIG']}/queue/private/tlsmgr"
    assert instance.find(postfix).socket == socket_path
    expect_failure(ctl("policy", "smtp", stdin=b"", **postfix), 1, f"connect to {socket_path}: ")


@pytest.mark.parametrize("command", ["tlsmgr", "tlsmgr-preforked", None])
def test_a_postfix_that_does_not_use_ours(postfix: dict[str, str], command: str | None) -> None:
    line = f"tlsmgr unix - - y 1000? 1 {command}\n" if command else ""
    Path(postfix["MAIL_CONFIG"], "master.cf").write_text(line)
    assert instance.find(postfix) == instance.standalone(postfix)


def test_a_postfix_that_may_not_be_asked(
    postfix: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    own = Path(instance.standalone(postfix).socket)
    assert instance.find(postfix) == instance.enabled_postfix(postfix)
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert instance.find(postfix).socket == str(own)


def test_without_postfix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "SEARCH_PATH", str(tmp_path))
    assert (
        instance.find({"HOME": "/h", "XDG_STATE_HOME": "/s"}).socket == "/s/tlsmgr/private/tlsmgr"
    )


def test_the_service_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After tlsmgr-start, if its socket exists."""
    service = tmp_path / "service"
    monkeypatch.setattr(instance, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setattr(instance, "SERVICE_SOCKET", str(service))
    environment = {"PATH": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    own = Path(instance.standalone(environment).socket)
    assert instance.find(environment).socket == str(own)
    service.write_text("")
    assert instance.find(environment).socket == str(service)
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert instance.find(environment).socket == str(own)


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as a user who may not enter a directory")
def test_a_directory_that_may_not_be_entered(tmp_path: Path) -> None:
    closed = Path(tempfile.mkdtemp(prefix="tm-"))
    code = "import os, sys; os.setuid(65534); from tlsmgr.ctl.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--socket", f"{closed}/socket", "seed", "32"]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)
    finally:
        closed.rmdir()
    expect_failure(run, 1, f"connect to {closed}/socket: Permission denied; only root and")


def test_a_directory_of_postfix(postfix: dict[str, str]) -> None:
    """It need not have ours enabled, nor be the default one."""
    directory = postfix.pop("MAIL_CONFIG")
    Path(directory, "master.cf").write_text("tlsmgr unix - - y 1000? 1 tlsmgr\n")
    found = instance.find(postfix, directory)
    assert found == instance.Instance(f"{directory}/queue/private/tlsmgr", directory, True)
    run = ctl("-c", directory, "policy", "smtp")
    expect_failure(run, 1, f"connect to {found.socket}: ")
    assert ctl("policy", "-c", directory, "smtp").stderr == run.stderr


def test_of_several_postfixes_the_one_that_has_ours_enabled(postfix: dict[str, str]) -> None:
    second = Path(postfix["MAIL_CONFIG"], "second")
    default = second.with_name("default")
    for directory, command in ((default, "tlsmgr"), (second, "tlsmgr-prefork")):
        directory.mkdir()
        queue = f"queue_directory = {directory}/queue\n"
        others = f"multi_instance_directories = {second}\n"
        write_settled(directory / "main.cf", queue + others)
        (directory / "master.cf").write_text(f"tlsmgr unix - - y 1000? 1 {command}\n")
    found = instance.enabled_postfix({**postfix, "MAIL_CONFIG": str(default)})
    assert found == instance.Instance(f"{second}/queue/private/tlsmgr", str(second), True)


def test_a_directory_of_tlsmgr_start(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": "/s"}
    found = instance.find(environment, str(tmp_path))
    assert found == instance.Instance("/s/tlsmgr/private/tlsmgr", str(tmp_path), False)
    (tmp_path / "main.cf").write_text("queue_directory = $config_directory/q\n")
    assert instance.find(environment, str(tmp_path)).socket == f"{tmp_path}/q/private/tlsmgr"


@pytest.mark.parametrize("content", [None, "junk"])
def test_a_directory_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    directory = tmp_path / "config"
    if content is not None:
        directory.mkdir()
        (directory / "main.cf").write_text(content)
    expect_failure(ctl("-c", directory, "seed", "32"), 1, f"-c {directory}: ")


def test_a_postfix_that_cannot_be_read(postfix: dict[str, str]) -> None:
    directory = Path(postfix["MAIL_CONFIG"])
    write_settled(directory / "main.cf", "junk\n")
    cause = f"; `postconf -c {directory} -x` shows why"
    expect_failure(ctl("-c", directory, "seed", "32"), 1, f"-c {directory}: postconf", cause)


def test_without_a_command_it_is_status() -> None:
    if DEFAULT_COMMAND not in COMMANDS:
        pytest.skip("the command `status` is not here yet")
    assert parse([]).command == parse(["-c", "/etc"]).command == DEFAULT_COMMAND


# Mistakes of an operator


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[socket.socket]:
    """A listening socket, and nobody who answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.settimeout(30)
        listener.bind(str(tmp_path / "silent"))
        listener.listen()
        yield listener


def test_time_limit(silent: socket.socket) -> None:
    run = ctl("--socket", silent.getsockname(), "--timeout", "0.2", "seed", "32")
    expect_failure(run, 1, "did not answer within 0.2 s")


def test_interrupt(silent: socket.socket) -> None:
    command = [*COMMAND, "--socket", silent.getsockname(), "seed", "32"]
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job of a script ignores it
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, preexec_fn=heeded) as process:
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130


@pytest.mark.parametrize("arguments", [["lookup", "smtp", "large", "--raw"], ["--help"]])
def test_reader_gone(server: Path, arguments: list[str]) -> None:
    with Client(server) as client:
        client.update("smtp", b"large", bytes(1 << 20))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [*COMMAND, "--socket", str(server), *arguments]
        run = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)
    assert run.stderr == b""
    assert run.returncode in ((1,) if "lookup" in arguments else (0, 1))


def test_output_device_full(server: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [*COMMAND, "--socket", str(server), "seed", "32"]
        run = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert run.returncode == 1
    assert run.stderr == b"tlsmgrctl: No space left on device\n"


def test_input_without_end(server: Path) -> None:
    command = [*COMMAND, "--socket", str(server), "update", "smtp", "id"]
    with open("/dev/zero", "rb") as zero:
        run = subprocess.run(command, cwd=ROOT, stdin=zero, capture_output=True, timeout=60)
    expect_failure(run, 1, "standard input has more than 33554432 bytes")


@pytest.mark.parametrize("closed", [0, 1])
def test_standard_descriptor_closed(server: Path, closed: int) -> None:
    arguments = ["update", "smtp", "id"] if closed == 0 else ["policy", "smtp"]
    command = ["sh", "-c", f'exec "$@" {closed}<&-', "sh", *COMMAND, "--socket", str(server)]
    run = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, timeout=60)
    expect_failure(run, 1, "Bad file descriptor")


# Usage


def test_help_names_every_request_and_the_exit_status() -> None:
    run = ctl("--help")
    text = run.stdout.decode()
    assert (run.returncode, run.stderr) == (0, b"")
    assert all(f"\n    {request} " in text for request in REQUESTS)
    assert all(
        word in text
        for word in ("--socket PATH", "--timeout SECONDS", "--version", "exit status", "2 ")
    )


COMMAND_LINES = [[], *([name] for name in (*REQUESTS, *COMMANDS)), ["farm", "new"]]


@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(arguments: list[str]) -> None:
    run = ctl(*arguments, "--help", COLUMNS="80")
    assert run.returncode == 0
    assert [line for line in run.stdout.decode().splitlines() if len(line) > 80] == []


def test_help_has_the_default_directory_of_farm() -> None:
    shown = " ".join(ctl("farm", "--help").stdout.decode().split())
    assert "(default: MAIL_CONFIG, else /etc/postfix)" in shown
    assert "enabled" not in shown


@pytest.mark.parametrize("request_name", REQUESTS)
def test_help_of_each_request(request_name: str) -> None:
    run = ctl(request_name, "--help")
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout.startswith(b"usage: tlsmgrctl " + request_name.encode())
    assert (b"[--raw]" in run.stdout) == (request_name in ("seed", "lookup", "tktkey"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["frob"], "frob"),
        (["policy"], "TYPE"),
        (["lookup", "smtp"], "ID"),
        (["policy", "smtp", "--raw"], "--raw"),
        (["seed", "many"], "many"),
        (["tktkey", "xyz"], "not a string of hexadecimal digit pairs: xyz"),
        (["--timeout", "0", "policy", "smtp"], "not a time in seconds, more than 0: 0"),
        (["--timeout", "nan", "policy", "smtp"], "not a time in seconds, more than 0: nan"),
        (["--timeout", "soon", "policy", "smtp"], "not a time in seconds, more than 0: soon"),
    ],
)
def test_wrong_usage(arguments: list[str], reason: str) -> None:
    run = ctl(*arguments)
    text = run.stderr.decode()
    assert (run.returncode, run.stdout) == (2, b"")
    assert text.startswith("usage: tlsmgrctl")
    assert reason in text.splitlines()[-1]
    assert "Traceback" not in text
