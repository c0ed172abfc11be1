"""tlsmgrctl metrics: printed, as a file, and served; promtool(1) finds nothing to complain of."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.checkout import CHECKOUT
from support.daemon_process import wait_for
from support.status_samples import ControlSocket, busy

from tlsmgr.ctl.metrics_address import parse

COMMAND = [sys.executable, "-m", "tlsmgr.ctl.main", "metrics"]
OPEN = "application/openmetrics-text; version=1.0.0"
Run = subprocess.CompletedProcess[str]


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """The path of the service socket; the control socket is beside it."""
    return tmp_path / "s"


@pytest.fixture
def control(service: Path) -> Iterator[ControlSocket]:
    with ControlSocket(service, busy) as control:
        yield control


def metrics(service: Path, *arguments: str | Path) -> Run:
    return subprocess.run(
        [*COMMAND, "--socket", service, *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def expect_clean(content: str) -> None:
    """Promtool has nothing to say, where it is installed."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool of the package prometheus is not installed")
    run = subprocess.run(
        ["promtool", "check", "metrics"], input=content, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


# Printed


def test_open_metrics_on_standard_output(service: Path, control: ControlSocket) -> None:
    run = metrics(service)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("# EOF\n")
    names = {family.name for family in parse_open(run.stdout)}  # type: ignore[no-untyped-call]
    assert {"postfix_tlsmgr_requests", "postfix_tlsmgr_request_duration_seconds"} <= names


def test_classic_text(service: Path, control: ControlSocket) -> None:
    run = metrics(service, "--text")
    assert (run.returncode, run.stderr) == (0, "")
    expect_clean(run.stdout)


def test_no_daemon(service: Path) -> None:
    run = metrics(service)
    reason = f"tlsmgrctl: connect to {service}: No such file or directory; no tlsmgr serves there\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", reason)


# The file


def test_a_file_is_replaced(service: Path, control: ControlSocket, tmp_path: Path) -> None:
    path = tmp_path / "out" / "tlsmgr.prom"
    path.parent.mkdir()
    path.write_text("old")
    run = metrics(service, "--textfile", path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == [path.name]
    assert "\npostfix_tlsmgr_up 1.0\n" in path.read_text()
    expect_clean(path.read_text())


def test_without_a_daemon_the_file_has_no_old_figures(service: Path, tmp_path: Path) -> None:
    path = tmp_path / "tlsmgr.prom"
    path.write_text("postfix_tlsmgr_clients 5\n")
    run = metrics(service, "--textfile", path)
    assert (run.returncode, run.stdout) == (1, "")
    assert "connect to" in run.stderr
    (family,) = parse_text(path.read_text())
    assert [(sample.name, sample.value) for sample in family.samples] == [("postfix_tlsmgr_up", 0)]


def test_a_file_that_cannot_be_written(service: Path, control: ControlSocket) -> None:
    path = service.with_name("nowhere") / "tlsmgr.prom"
    run = metrics(service, "--textfile", path)
    reason = f"tlsmgrctl: cannot write {path}: No such file or directory\n"
    assert (run.returncode, run.stderr) == (1, reason)


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_only_a_regular_file_is_replaced(
    service: Path, control: ControlSocket, tmp_path: Path, kind: str
) -> None:
    """Else root would lose /dev/stdout, a link, or another device."""
    path, other = tmp_path / kind, tmp_path / "other"
    other.write_text("another file")
    {"pipe": os.mkfifo, "link": lambda p: p.symlink_to(other), "directory": Path.mkdir}[kind](path)
    before = path.lstat()
    run = metrics(service, "--textfile", path)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"tlsmgrctl: cannot write {path}: not a regular file\n"
    assert path.lstat() == before
    assert other.read_text() == "another file"


# Served


class Connection(http.client.HTTPConnection):
    """A connection of HTTP to `unix:PATH` or `inet:HOST:PORT`."""

    def __init__(self, address: str) -> None:
        super().__init__("localhost", timeout=30)
        self._address = parse(address)

    def connect(self) -> None:
        if self._address.path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(self._address.path)
        else:
            self.sock = socket.create_connection((self._address.host, self._address.port))


def get(address: str, accept: str = "", path: str = "/metrics") -> tuple[int, str, str]:
    """The status, the content type, and the content."""
    connection = Connection(address)
    connection.request("GET", path, headers={"Accept": accept} if accept else {})
    response = connection.getresponse()
    content = response.read().decode()
    connection.close()
    return response.status, response.getheader("Content-Type", ""), content


@contextmanager
def serving(service: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    """Run `metrics --listen`; at the end SIGTERM ends it, in order."""
    command = [*COMMAND, "--socket", str(service), "--listen", address]
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"serving on {address}\n"
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")


@pytest.fixture(params=["unix", "inet"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "unix":
        return f"unix:{tmp_path}/metrics"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"inet:127.0.0.1:{probe.getsockname()[1]}"


def test_served(service: Path, control: ControlSocket, address: str) -> None:
    with serving(service, address):
        status, content_type, content = get(address)
        assert (status, content_type.partition(";")[0]) == (200, "text/plain")
        expect_clean(content)
        _, content_type, content = get(address, OPEN)
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert content.endswith("# EOF\n")
        assert get(address, path="/")[0] == 404


def test_a_daemon_that_goes_and_comes_back(service: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/metrics"
    with serving(service, address):
        assert "postfix_tlsmgr_up 0.0\n" in get(address)[2]
        with ControlSocket(service, busy):
            wait_for(lambda: "postfix_tlsmgr_up 1.0\n" in get(address)[2], "the daemon is up")


def test_the_daemon_is_asked_once_a_second_at_most(
    service: Path, control: ControlSocket, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/metrics"
    with serving(service, address):
        for _ in range(50):
            get(address)
    assert control.answered < 50


def test_silent_clients_do_not_block_others(
    service: Path, control: ControlSocket, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/metrics"
    with serving(service, address):
        silent = [Connection(address) for _ in range(100)]
        for connection in silent:
            connection.connect()
        for _ in range(3):
            assert get(address)[0] == 200
        for connection in silent:
            connection.close()


def test_the_socket_file_is_for_all_and_goes_away(
    service: Path, control: ControlSocket, tmp_path: Path
) -> None:
    path = tmp_path / "metrics"
    with serving(service, f"unix:{path}"):
        assert path.stat().st_mode & 0o777 == 0o666
        second = metrics(service, "--listen", f"unix:{path}")
        reason = f"tlsmgrctl: cannot listen on unix:{path}: Address already in use\n"
        assert (second.returncode, second.stderr) == (1, reason)
    assert not path.exists()


def test_a_socket_file_that_was_left_is_replaced(
    service: Path, control: ControlSocket, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "metrics"))
    with serving(service, f"unix:{tmp_path}/metrics"):
        assert get(f"unix:{tmp_path}/metrics")[0] == 200


def test_a_file_that_is_no_socket_stays(service: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert metrics(service, "--listen", f"unix:{path}").returncode == 1
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "address", ["", "unix:", "unix:relative", "inet:1", "inet::1", "inet:h:99999", "tcp:h:1"]
)
def test_a_bad_address(address: str) -> None:
    with pytest.raises(ValueError, match="neither unix:/PATH nor inet:HOST:PORT"):
        parse(address)


def test_good_addresses() -> None:
    assert parse("inet:[::1]:9").host == "::1"
    assert parse("inet:localhost:9")[1:] == ("", "localhost", 9)
    assert parse("unix:/a:b").path == "/a:b"


def test_without_prometheus_client(tmp_path: Path, service: Path) -> None:
    (tmp_path / "prometheus_client").mkdir()
    (tmp_path / "prometheus_client" / "__init__.py").write_text("raise ImportError")
    run = subprocess.run(
        [*COMMAND, "--socket", service],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    package = "prometheus_client"
    reason = f"tlsmgrctl: metrics needs the Python package {package}: pip install {package}\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", reason)
