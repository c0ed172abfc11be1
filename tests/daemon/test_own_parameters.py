"""A daemon whose tlsmgr.cf is wrong in every line serves, with the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.daemon_clients import ask
from support.daemon_process import MakeDaemon
from support.raw_client import data_of, policy, policy_is, seed
from support.settled_files import write_settled

from tlsmgr.config.parameters import OURS

MISTAKES = {
    "every value": "".join(f"{row.name} = wrong\n" for row in OURS),
    "every name": "".join(f"{row.name}s = 1\n" for row in OURS),
    "every line": "".join(f"{row.name}\n" for row in OURS),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_tlsmgr_cf_stops_nothing(
    make_daemon: MakeDaemon, tmp_path: Path, mistake: str
) -> None:
    write_settled(tmp_path / "tlsmgr.cf", MISTAKES[mistake])
    daemon = make_daemon(arguments=("-c", str(tmp_path)))
    assert len(data_of(ask(daemon.socket_path, seed(5)), b"seed")) == 5
    assert ask(daemon.socket_path, policy(b"smtp")) == policy_is(1, 3600)
    lines = [line for line in daemon.lines() if f"{tmp_path}/tlsmgr.cf, line " in line]
    number = {"every value": len(OURS), "every name": len(OURS), "every line": 1}[mistake]
    assert len(lines) == number, daemon.log()
    severity = "warning: " if mistake == "every name" else "error: "
    assert all(line.startswith(severity) for line in lines)
