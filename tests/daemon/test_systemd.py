"""The standalone daemon under systemd(1): its sockets, and what it tells systemd."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.daemon_process import PATIENCE, Daemon, MakeDaemon
from support.hangup import reload
from support.raw_client import data_of, found, lookup, seed, tktkey, update

WATCHDOG = 2.0  # seconds after which systemd would end the service
AS_SYSTEMD = """\
import os, socket
if "LISTEN_PID" not in os.environ:  # not in a reload
    os.environ.update({environment!r})
    os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
    passed = socket.socket({family}, {kind})
    {setup}
    os.dup2(passed.fileno(), 3)
"""
LISTENING = "passed.bind({path!r}); passed.listen()"

StartUnderSystemd = Callable[..., Daemon]


class Notices:
    """The socket on which systemd takes notices."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)

    def next(self, timeout: float = PATIENCE) -> str:
        """Return the next one. TimeoutError: there is none."""
        self._socket.settimeout(timeout)
        return self._socket.recv(4096).decode()

    def next_but_watchdog(self) -> str:
        """Return the next one that is not the watchdog's."""
        while (notice := self.next()) == "WATCHDOG=1":
            pass
        return notice

    def drain(self) -> None:
        """Forget those that wait."""
        self._socket.setblocking(False)
        while True:
            try:
                self._socket.recv(4096)
            except BlockingIOError:
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """One with a short path."""
    with tempfile.TemporaryDirectory(prefix="sd-") as name:
        yield Path(name)


@pytest.fixture
def notices(directory: Path) -> Iterator[Notices]:
    made = Notices(directory)
    yield made
    made.close()


def prelude(directory: Path, setup: str = "", family: str = "1", kind: str = "1") -> str:
    """Python that makes a process what systemd would have started."""
    environment = {
        "LISTEN_FDS": "1",
        "NOTIFY_SOCKET": str(directory / "notify"),
        "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
    }
    setup = setup or LISTENING.format(path=str(directory / "service"))
    return AS_SYSTEMD.format(environment=environment, setup=setup, family=family, kind=kind)


@pytest.fixture
def under_systemd(directory: Path, make_daemon: MakeDaemon) -> Iterator[StartUnderSystemd]:
    """Start a daemon with a listening socket as descriptor 3."""

    def start(*overrides: str) -> Daemon:
        return make_daemon(*overrides, sabotage=prelude(directory))

    yield start
    (directory / "service").unlink(missing_ok=True)  # which is systemd's, not the daemon's


def test_it_serves_on_the_socket_of_systemd(
    under_systemd: StartUnderSystemd, directory: Path, notices: Notices
) -> None:
    daemon = under_systemd("tlsmgr_worker_processes=1")
    assert daemon.socket_path == str(directory / "service")
    assert len(data_of(ask(daemon.socket_path, seed(7)), b"seed")) == 7
    assert notices.next() == "READY=1"
    daemon.stop()
    assert os.path.lexists(daemon.socket_path)
    os.unlink(daemon.socket_path)


def test_a_client_that_came_before_the_daemon_is_served(
    make_daemon: MakeDaemon, directory: Path, notices: Notices
) -> None:
    path = str(directory / "service")
    client = "client = socket.socket(1); client.connect({0!r}); client.sendall({1!r})"
    setup = f"{LISTENING}; del os.environ['WATCHDOG_USEC']; {client}".format(
        path, seed(9), path=path
    )
    daemon = make_daemon("tlsmgr_worker_processes=1", sabotage=prelude(directory, setup))
    assert notices.next() == "READY=1"
    daemon.stop()
    assert "statistics: connections=1 seed=1" in daemon.lines()
    os.unlink(path)


def test_a_reload_keeps_its_socket_and_tells_systemd(
    under_systemd: StartUnderSystemd, notices: Notices
) -> None:
    """Twice; the watchdog is fed before and after, and the stop is told once."""
    daemon = under_systemd("tlsmgr_worker_processes=1")
    path = daemon.socket_path
    inode = os.stat(path).st_ino
    key = data_of(ask(path, tktkey()), b"keybuf")
    assert notices.next() == "READY=1"
    assert notices.next(WATCHDOG) == "WATCHDOG=1"
    for _ in range(2):
        began = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        reload(daemon)
        first, _, stamp = notices.next_but_watchdog().partition("\nMONOTONIC_USEC=")
        assert first == "RELOADING=1"
        assert began <= int(stamp) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert notices.next_but_watchdog() == "READY=1"
        assert notices.next(WATCHDOG) == "WATCHDOG=1"
        assert data_of(ask(path, tktkey()), b"keybuf") == key
    assert os.stat(path).st_ino == inode
    assert daemon.stop() == 0
    assert notices.next_but_watchdog() == "STOPPING=1"
    assert not [line for line in daemon.lines() if re.match("(warning|error|fatal|panic):", line)]
    os.unlink(path)


def test_a_reload_on_an_abstract_socket(make_daemon: MakeDaemon, directory: Path) -> None:
    """ListenStream=@NAME: a name without a file, which has no directory and no owner."""
    path = f"\0{directory}"
    setup = f"passed.bind({path!r}); passed.listen()"
    daemon = make_daemon("tlsmgr_worker_processes=1", sabotage=prelude(directory, setup))
    assert daemon.socket_path == path
    key = data_of(ask(path, tktkey()), b"keybuf")
    for _ in range(2):
        reload(daemon)
        assert data_of(ask(path, tktkey()), b"keybuf") == key
    assert daemon.stop() == 0
    daemon.socket_path = ""  # there is no file to look for


def test_the_watchdog_is_fed_while_it_serves(
    under_systemd: StartUnderSystemd, notices: Notices
) -> None:
    daemon = under_systemd("tlsmgr_worker_processes=1")
    assert notices.next() == "READY=1"
    for _ in range(3):
        assert notices.next(WATCHDOG) == "WATCHDOG=1"
    daemon.stop()
    assert notices.next_but_watchdog() == "STOPPING=1"
    os.unlink(daemon.socket_path)


def test_the_watchdog_starves_when_no_worker_answers(
    under_systemd: StartUnderSystemd, notices: Notices
) -> None:
    """The parent and the janitor still run: they are not the service."""
    daemon = under_systemd("tlsmgr_worker_processes=1")
    assert notices.next() == "READY=1"
    (worker,) = daemon.workers()
    worker.suspend()
    daemon.wait_for_log(f"warning: no answer on {daemon.socket_path}; systemd restarts")
    notices.drain()
    with pytest.raises(TimeoutError):
        notices.next(WATCHDOG / 2)
    worker.resume()
    assert notices.next() == "WATCHDOG=1"
    assert daemon.stop() == 0
    os.unlink(daemon.socket_path)


def test_without_systemd_no_notice_and_no_probe(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1")
    assert daemon.stop() == 0
    assert not [line for line in daemon.lines() if "seed=" in line]


@pytest.mark.parametrize(
    ("setup", "family", "kind", "reason"),
    [
        ("pass", "1", "1", "is not a listening UNIX-domain socket"),
        ("pass", "1", "2", "is not a listening UNIX-domain socket"),
        ("passed.listen()", "2", "1", "is not a listening UNIX-domain socket"),
        ("passed = open(os.devnull)", "1", "1", ": Socket operation on non-socket"),
    ],
)
def test_another_descriptor_is_refused(
    make_daemon: MakeDaemon, directory: Path, setup: str, family: str, kind: str, reason: str
) -> None:
    daemon = make_daemon(sabotage=prelude(directory, setup, family, kind), start=False)
    daemon.launch()
    assert daemon.wait() == 1
    (line,) = [line for line in daemon.lines() if "fatal: " in line]
    assert line == f"fatal: descriptor 3 of systemd{'' if reason[0] == ':' else ' '}{reason}"


def test_descriptors_for_another_process_are_not_taken(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", start=False)
    os.environ.update(LISTEN_PID="1", LISTEN_FDS="1")
    try:
        daemon.start()
    finally:
        del os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"]
    assert daemon.socket_path == str(daemon.directory / "private/tlsmgr")


def test_it_serves_where_memory_is_never_writable_and_executable(make_daemon: MakeDaemon) -> None:
    """The kernel's own form of MemoryDenyWriteExecute, NoNewPrivileges and the unit's limits."""
    hardened = (
        "import ctypes, resource\n"
        "prctl = ctypes.CDLL(None).prctl\n"
        "assert prctl(38, 1, 0, 0, 0) == 0\n"  # PR_SET_NO_NEW_PRIVS
        "prctl(65, 1, 0, 0, 0)\n"  # PR_SET_MDWE, since Linux 6.3
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    )
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=hardened)
    assert ask(daemon.socket_path, update(b"smtp", b"id", b"session")).startswith(b"status\x000\0")
    assert ask(daemon.socket_path, lookup(b"smtp", b"id")) == found(b"session")
    assert daemon.stop() == 0
    assert not [line for line in daemon.lines() if re.match("(warning|error|fatal|panic):", line)]
