"""Fixtures: the real daemon, and the rule that long tests run only when they are asked for."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.daemon_process import Daemon, MakeDaemon
from support.small_disks import mounted

if TYPE_CHECKING:
    from support.fault_table import FaultTable

pytest.register_assert_rewrite(
    "support.daemon_clients", "support.raw_client", "support.standalone_program"
)

FAULTS: pytest.StashKey[FaultTable] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Make the table of faults for this run."""
    from support.fault_table import FaultTable  # it imports modules that are named above

    config.stash[FAULTS] = FaultTable()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table of faults, if one was tried."""
    if config.stash[FAULTS].rows:
        terminalreporter.section("faults")
        for line in config.stash[FAULTS].lines():
            terminalreporter.write_line(line)


@pytest.fixture
def faults(pytestconfig: pytest.Config) -> FaultTable:
    """The table to which a test of a fault adds its row."""
    return pytestconfig.stash[FAULTS]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked ``long`` unless -m says otherwise."""
    if config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture
def make_daemon() -> Iterator[MakeDaemon]:
    """Start daemons; at the end all are stopped, and nothing may be left of them."""
    daemons: list[Daemon] = []

    def make(
        *overrides: str,
        arguments: tuple[str, ...] = (),
        state: str = "",
        sabotage: str = "",
        start: bool = True,
    ) -> Daemon:
        daemon = Daemon(*overrides, arguments=arguments, state=state, sabotage=sabotage)
        daemons.append(daemon)
        return daemon.start() if start else daemon

    yield make
    _clean_up(daemons)


def _clean_up(daemons: list[Daemon]) -> None:
    """All of them, even if one fails: it must not hide behind another."""
    if daemons:
        try:
            daemons.pop().clean_up()
        finally:
            _clean_up(daemons)


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    """A daemon with two workers and all three caches."""
    return make_daemon("tlsmgr_worker_processes=2")


@pytest.fixture
def idle(make_daemon: MakeDaemon) -> Daemon:
    """A daemon that was not started: its directory and environment are of use."""
    return make_daemon(start=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    with mounted(tmp_path / "disk", "4m") as disk:
        yield disk


@pytest.fixture
def many_descriptors() -> None:
    """As many as the system grants: more than a thousand clients live in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs 4,096 descriptors")
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


ALL_WARNINGS = "from tlsmgr.processes import worker\nworker.WARNING_BURST = 10**6"
"""Stock logs each warning that a client causes; so does the daemon that is held against it."""


@pytest.fixture(scope="session")
def recorded_daemon() -> Iterator[Daemon]:
    """A daemon that is configured like the stock one that was recorded: caches smtp and smtpd."""
    daemon = Daemon(
        "tlsmgr_worker_processes=2", "lmtp_tls_session_cache_database=", sabotage=ALL_WARNINGS
    )
    try:
        yield daemon.start()
    finally:
        daemon.clean_up()
