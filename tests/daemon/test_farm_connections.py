"""All ways to reach an engine: password, TLS, a user, Sentinel and a cluster, with redis-server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.farm_engines import NEEDS_REDIS, Redis, free_port
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.raw_client import OK, found, lookup, update

pytestmark = NEEDS_REDIS
SESSION = b"session" * 100
SHARED = "answers: sessions are shared$"


def start(make_daemon: MakeDaemon, tmp_path: Path, url: str, *more: str) -> Daemon:
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    return make_daemon(
        f"tlsmgr_farm_secret_file={secret}",
        f"tlsmgr_farm_store={url}",
        "tlsmgr_farm_deadline=10s",
        "tlsmgr_worker_processes=1",
        *more,
    )


def expect_sharing(one: Daemon, other: Daemon) -> None:
    """What one stores is found by the other, soon."""
    for number in range(20):
        assert ask(one.socket_path, update(b"smtp", b"%d" % number, SESSION)) == OK
    one.wait_for_log(SHARED)
    other.wait_for_log(SHARED)
    wait_for(
        lambda: ask(other.socket_path, lookup(b"smtp", b"19")) == found(SESSION), "the last one"
    )
    for number in range(19):
        assert ask(other.socket_path, lookup(b"smtp", b"%d" % number)) == found(SESSION)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that signs itself, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    path = tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(tmp_path / "key.pem"), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    tmp_path.chmod(0o755)
    return path


def test_tls_and_password(make_daemon: MakeDaemon, tmp_path: Path, certificate: Path) -> None:
    """With a certificate that is not trusted, and with a wrong password, nothing is shared."""
    port = free_port()
    password = tmp_path / "password"
    write(password, "p\u00e4ss word\n")
    with Redis(
        "--tls-port", str(port), "--tls-cert-file", str(certificate),
        "--tls-key-file", str(tmp_path / "key.pem"), "--tls-auth-clients", "no",
    ) as server:  # fmt: skip
        assert server.call("CONFIG", "SET", "requirepass", "p\u00e4ss word") == b"+OK\r\n"
        url = f"rediss://localhost:{port}/0"
        trusted = f"{url}?ssl_ca_certs={certificate}"
        file = f"tlsmgr_farm_store_password_file={password}"
        expect_sharing(*(start(make_daemon, tmp_path, trusted, file) for _ in range(2)))
        for other, options, reason in (
            (url, (file,), "CERTIFICATE_VERIFY_FAILED"),
            (trusted, (), "AuthenticationError: "),
        ):
            daemon = start(make_daemon, tmp_path, other, *options)
            daemon.wait_for_log(f"warning: {url}: .*{reason}.*; sessions are not shared until")
            assert "ss word" not in daemon.log()


@pytest.fixture
def master() -> Iterator[Redis]:
    with Redis(port=free_port()) as server:
        yield server


@pytest.mark.long
def test_sentinel(make_daemon: MakeDaemon, tmp_path: Path, master: Redis) -> None:
    port = free_port()
    with Redis(port=port, config=f"sentinel monitor main 127.0.0.1 {master.port} 1\n"):
        url = f"sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/main"
        expect_sharing(*(start(make_daemon, tmp_path, url) for _ in range(2)))
    assert len(master.stored()) == 20


def is_whole(server: Redis) -> bool:
    """Whether all servers of the cluster know each other."""
    return b"cluster_state:ok" in server.call("CLUSTER", "INFO")


@pytest.mark.long
def test_cluster(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    options = "--cluster-enabled", "yes"
    with Redis(*options, port=free_port()) as one, Redis(*options, port=free_port()) as two:
        assert one.call("CLUSTER", "ADDSLOTSRANGE", "0", "8000") == b"+OK\r\n"
        assert two.call("CLUSTER", "ADDSLOTSRANGE", "8001", "16383") == b"+OK\r\n"
        assert one.call("CLUSTER", "MEET", "127.0.0.1", str(two.port)) == b"+OK\r\n"
        for server in (one, two):
            wait_for(partial(is_whole, server), "the cluster")
        url = f"cluster://127.0.0.1:{one.port}"
        expect_sharing(*(start(make_daemon, tmp_path, url) for _ in range(2)))
        assert one.stored()
        assert two.stored()
        assert len(one.stored() + two.stored()) == 20
