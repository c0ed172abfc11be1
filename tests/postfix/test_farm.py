"""Two mail hosts with one secret: tickets that one of them issued resume sessions on the other."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.farm_secret import DAY, EXAMPLE_KEY, file_text, write
from support.launcher import launcher
from support.postfix_instance import PostfixInstance, need_postfix
from support.settled_files import write_settled

VERSIONS = ["tls1_2", "tls1_3"]
T = 3600
MARGIN = 60.0  # seconds; limit for one connection on a loaded machine


@contextlib.contextmanager
def host(secret_file: Path) -> Iterator[PostfixInstance]:
    """A mail host of its own, with its own copy of the secret file."""
    need_postfix("btree")
    if shutil.which("openssl") is None:
        pytest.skip("openssl(1) is missing")
    with launcher() as path:
        postfix = PostfixInstance(tlsmgr=path, mail=True, chroot=True)
        copy = postfix.config / "farm.secret"
        shutil.copy(secret_file, copy)
        write_settled(postfix.config / "tlsmgr.cf", f"tlsmgr_farm_secret_file = {copy}\n")
        with postfix:
            yield postfix
            assert postfix.complaints() == []
            assert postfix.stop() == []


def secret_file(directory: Path, key: bytes) -> Path:
    """A file with a secret that holds since ten days ago."""
    date = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 10 * DAY))
    return write(directory / key[:4].hex(), file_text({date: key}))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostfixInstance]:
    with host(secret_file(tmp_path_factory.mktemp("one"), EXAMPLE_KEY)) as postfix:
        yield postfix


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostfixInstance]:
    with host(secret_file(tmp_path_factory.mktemp("other"), EXAMPLE_KEY)) as postfix:
        yield postfix


def connect(postfix: PostfixInstance, version: str, *options: str | Path) -> bool:
    """Make a connection with openssl(1); return whether a session was resumed."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{postfix.sink_port}"]
    run = subprocess.run(
        [*command, "-starttls", "smtp", f"-{version}", "-ign_eof", *options],
        input="QUIT\r\n",
        capture_output=True,
        text=True,
        timeout=MARGIN,
    )
    outcome = re.search(r"^(New|Reused), TLSv1\.[23]", run.stdout, re.MULTILINE)
    assert outcome is not None, run.stdout + run.stderr
    return outcome[1] == "Reused"


def issue(postfix: PostfixInstance, version: str, path: Path) -> Path:
    """Get a ticket from this host in a file."""
    assert not connect(postfix, version, "-sess_out", path)
    assert b"BEGIN SSL SESSION" in path.read_bytes()
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ticket_of_one_is_accepted_by_the_other(
    one: PostfixInstance, other: PostfixInstance, version: str, tmp_path: Path
) -> None:
    for first, second in [(one, other), (other, one)]:
        ticket = issue(first, version, tmp_path / "ticket")
        assert connect(second, version, "-sess_in", ticket)
        assert connect(first, version, "-sess_in", ticket)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ticket_survives_reload_stop_and_start(
    one: PostfixInstance, version: str, tmp_path: Path
) -> None:
    ticket = issue(one, version, tmp_path / "ticket")
    one.postfix("reload")
    assert connect(one, version, "-sess_in", ticket)
    assert one.stop() == []
    one.start()
    assert connect(one, version, "-sess_in", ticket)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_host_with_another_secret_refuses_it_and_counts(
    one: PostfixInstance, version: str, tmp_path: Path
) -> None:
    ticket = issue(one, version, tmp_path / "ticket")
    with host(secret_file(tmp_path, os.urandom(32))) as stranger:
        assert not connect(stranger, version, "-sess_in", ticket)
        stranger.postfix("reload")
        (line,) = stranger.wait_log("statistics: ")
        assert re.search(r" unknown_keys=[12]( |$)", line)
