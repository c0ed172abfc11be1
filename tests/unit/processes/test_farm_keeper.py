"""The keeper of the farm process, whose place the test takes: starts, silence, ends, counts."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.own_descriptors import own_descriptors
from support.parent_parts import FakeChildren, inherited_for

from tlsmgr import log
from tlsmgr.farm.engine import Settings
from tlsmgr.processes import farm_keeper
from tlsmgr.processes.children import HUNG_TIME, Child, Children
from tlsmgr.processes.farm import Configuration, configuration
from tlsmgr.processes.farm_keeper import PAUSE, YOUNG, Keeper
from tlsmgr.processes.farm_plan import FarmPlan
from tlsmgr.processes.scoreboard import STALL_TIME
from tlsmgr.stats import INDEX

SLOT = 5
ENGINE = Settings("redis", "unix:///nowhere", {"password": "word"}, 0.05)


class ChildrenAtOnce(FakeChildren):
    """The entry of a child is called in this process."""

    def spawn(self, name: str, slot: int, uses_files: bool, entry: Callable[[], int]) -> Child:
        child = super().spawn(name, slot, uses_files, entry)
        entry()
        return child


class Bench:
    """A keeper with the farm processes that it started. ``lines`` are its log lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.started: list[Configuration] = []
        self.farm: socket.socket | None = None  # what the latest one sends through
        self.open_lanes = memoryview(bytearray(b"\1\1"))
        self.inherited = inherited_for(2)
        self.pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.plan = FarmPlan((ENGINE,), {}, self.open_lanes, 0.05, {1: self.pair}, {}, None)
        monkeypatch.setattr(farm_keeper, "Children", ChildrenAtOnce)
        monkeypatch.setattr(farm_keeper, "_become", self._become)
        for name in ("warning", "error"):
            monkeypatch.setattr(log, name, self.lines.append)
        self.keeper = self.another()
        self.children: FakeChildren = self.keeper._children  # type: ignore[assignment]
        self.now = time.monotonic()

    def another(self, can_start: bool = True) -> Keeper:
        return Keeper(self.inherited, self.plan, SLOT, can_start)

    def _become(self, kept: list[int], configuration_fd: int) -> None:
        settings = configuration(os.read(configuration_fd, 1 << 16))
        assert set(kept) == {*settings.ends, settings.keeper, configuration_fd}
        self.close()
        self.farm = socket.socket(fileno=os.dup(settings.keeper))
        self.started.append(settings)

    def look(self, later: float = 0.0) -> None:
        self.now += later
        self.keeper._look_after(self.now)

    def say(self, *message: Any) -> None:
        """Have the farm process send that."""
        assert self.farm is not None
        self.farm.send(json.dumps(message).encode())
        self.keeper._receive(self.now)

    def end(self, code: int) -> None:
        (child,) = self.children
        self.children.end(child, code)

    @property
    def dropped(self) -> int:
        return int(self.inherited.stats.row(SLOT)[INDEX["farm_dropped"]])

    def close(self) -> None:
        if self.farm is not None:
            self.farm.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    made.keeper._drop_link()
    for end in made.pair:
        end.close()
    made.close()


def run_until_the_parent_ends(keeper: Keeper) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    try:
        keeper.run(reader)
    finally:
        os.close(reader)


def test_what_the_farm_process_gets(bench: Bench) -> None:
    bench.look()
    (settings,) = bench.started
    assert settings.engines == (ENGINE,)
    assert settings.ends == (bench.pair[1].fileno(),)
    bench.look(1.0)
    assert len(bench.started) == 1, "one at a time"


def test_lanes_are_closed_until_the_engines_answer(bench: Bench) -> None:
    """A keeper that died may have left them open, and so may its farm process."""
    run_until_the_parent_ends(bench.keeper)
    assert bench.inherited.scoreboard.last_beat(SLOT) >= bench.now
    assert list(bench.open_lanes) == [0, 0]
    bench.say("state", [True, False], 0)
    assert list(bench.open_lanes) == [1, 0]
    bench.end(-signal.SIGKILL)
    bench.look()
    assert list(bench.open_lanes) == [0, 0]


def test_in_the_jail_it_says_that_it_cannot_start_one(bench: Bench) -> None:
    run_until_the_parent_ends(bench.another(can_start=False))
    assert bench.started == []
    assert list(bench.open_lanes) == [0, 0]
    assert bench.lines == [
        "the farm process cannot start in the jail; reload to share sessions again"
    ]


def test_one_that_is_silent_is_not_asked_and_then_killed(bench: Bench) -> None:
    bench.look()
    bench.say("state", [True, True], 0)
    bench.look(STALL_TIME - 0.1)
    assert list(bench.open_lanes) == [1, 1]
    bench.look(0.2)
    assert list(bench.open_lanes) == [0, 0]
    bench.say("state", [True, True], 0)
    bench.look(STALL_TIME - 0.1)
    assert list(bench.open_lanes) == [1, 1], "it was heard again"
    (child,) = bench.children
    bench.children.blocked = [child]
    bench.look(HUNG_TIME - STALL_TIME)
    assert bench.children.sent == []
    bench.look(0.2)
    bench.look(1.0)
    assert bench.children.sent == [(child, signal.SIGKILL)], "once"
    bench.children.blocked = []
    bench.end(-signal.SIGKILL)
    bench.look()
    assert len(bench.started) == 2
    assert bench.lines == [f"farm process pid {child.pid} does not respond: ending it"]


@pytest.mark.parametrize(
    ("code", "end"), [(-signal.SIGKILL, "killed by signal 9"), (1, "exit status 1")]
)
def test_one_that_dies_is_replaced_at_once_and_a_young_one_after_a_pause(
    bench: Bench, code: int, end: str
) -> None:
    bench.look()
    (first,) = bench.children
    bench.end(code)
    bench.look(YOUNG + 0.1)
    assert len(bench.started) == 2
    bench.end(code)
    (second,) = bench.children
    second.started = bench.now
    bench.look(YOUNG - 0.1)
    bench.look(PAUSE - 0.1)
    assert len(bench.started) == 2
    bench.look(0.2)
    assert len(bench.started) == 3
    assert bench.lines == [
        f"farm process pid {child.pid} {end}; another one takes its place"
        for child in (first, second)
    ]


def test_the_system_lets_it_fork_none(bench: Bench) -> None:
    bench.children.fork_error = BlockingIOError(11, "Resource temporarily unavailable")
    before = len(os.listdir("/proc/self/fd"))
    bench.look()
    bench.look(PAUSE - 0.1)
    assert len(bench.lines) == 1
    bench.children.fork_error = None
    bench.look(0.2)
    assert len(bench.started) == 1
    assert bench.lines == [
        "cannot start the farm process: Resource temporarily unavailable; will try again"
    ]
    assert len(os.listdir("/proc/self/fd")) == before + 2, "its link, and the test's end"


def test_dropped_writes_of_all_of_them_are_counted(bench: Bench) -> None:
    """Each tells how many it has dropped so far."""
    bench.look()
    for dropped in (3, 3, 5):
        bench.say("state", [True, True], dropped)
    assert bench.dropped == 5
    bench.end(1)
    bench.look(YOUNG + 0.1)
    for dropped in (0, 2):
        bench.say("state", [True, True], dropped)
    assert bench.dropped == 7


def test_its_last_words_are_logged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the severity that they had there; they may come with the news of its end."""
    written: list[tuple[log.Severity, str]] = []
    monkeypatch.setattr(log, "write", lambda severity, text: written.append((severity, text)))
    bench.look()
    assert bench.farm is not None
    with contextlib.closing(bench.farm):
        for line in (("log", "warning: ", 4, "one"), ("log", "panic: ", 2, "\u00e4")):
            bench.farm.send(json.dumps(line).encode())
    bench.end(1)
    bench.look()
    assert written == [
        (log.Severity("warning: ", 4), "one"),
        (log.Severity("panic: ", 2), "\u00e4"),
    ]


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
    for now in (10.0, 10.0 + PAUSE / 2, 10.0 + PAUSE):
        keeper._look_after(now)
    assert len(tries) == 2
    assert capfd.readouterr().err.count(
        "warning: cannot start the farm process: Too many open files in system; will try again\n"
    ) == len(tries)
    assert own_descriptors() == before
