"""The keeper of the farm process, where the system has no room for another one."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from support.own_descriptors import own_descriptors
from support.parent_parts import inherited_for

from tlsmgr.processes.children import Children
from tlsmgr.processes.farm_keeper import PAUSE, Keeper
from tlsmgr.processes.farm_plan import FarmPlan

START = 10.0


@pytest.mark.parametrize(
    ("module", "name"),
    [(socket, "socketpair"), (os, "pipe"), (Children, "spawn")],
    ids=["socket", "pipe", "fork"],
)
def test_a_start_that_fails_is_tried_again(
    module: object,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After a pause, and nothing is left open."""
    tries = []

    def fail(*arguments: object) -> None:
        tries.append(arguments)
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    plan = FarmPlan((), {}, memoryview(bytearray(1)), 0.05, {}, {}, None)
    keeper = Keeper(inherited_for(1), plan, 1, can_start=True)
    before = own_descriptors()
    monkeypatch.setattr(module, name, fail)
    for now in (START, START + PAUSE / 2, START + PAUSE):
        keeper._look_after(now)
    assert len(tries) == 2
    assert capfd.readouterr().err.count(
        "warning: cannot start the farm process: Too many open files in system; will try again\n"
    ) == len(tries)
    assert own_descriptors() == before
