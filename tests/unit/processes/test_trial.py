"""A trial of a start that cannot even begin; the others are tried with the real daemon."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tlsmgr.processes.jobs import Jobs
from tlsmgr.processes.program import Program
from tlsmgr.processes.trial import Trial

PROGRAM = Program(("/usr/bin/python3", "-m", "tlsmgr.standalone"), 3, "/", 0o77)


class NoProcess:
    """A parent that may fork nothing, and its table of children."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.children = self
        self.is_stopping = False
        self.reloads = 0
        self.tries = 0

    def spawn_beside(self, entry: Callable[[], int], on_end: Callable[[int], object]) -> int:
        self.tries += 1
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def reload(self) -> None:
        self.reloads += 1


def test_no_process_for_a_trial(capfd: pytest.CaptureFixture[str]) -> None:
    """One line for each signal, no reload, and nothing is left open."""
    parent = NoProcess()
    trial = Trial(PROGRAM, parent)  # type: ignore[arg-type]
    before = os.listdir("/proc/self/fd")
    for tries in (1, 2):
        trial.begin()
        assert capfd.readouterr().err.endswith(
            ": error: cannot reload: no process for a trial: Resource temporarily unavailable;"
            " the configuration in use is kept\n"
        )
        assert (parent.tries, parent.reloads) == (tries, 0)
        parent.jobs.run()
    assert os.listdir("/proc/self/fd") == before


def test_no_memory_for_its_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(os, "memfd_create", fail)
    parent = NoProcess()
    before = os.listdir("/proc/self/fd")
    Trial(PROGRAM, parent).begin()  # type: ignore[arg-type]
    assert "no process for a trial: Too many open files in system;" in capfd.readouterr().err
    assert os.listdir("/proc/self/fd") == before
    assert (parent.tries, parent.reloads) == (0, 0)


def test_while_the_daemon_stops_there_is_no_trial() -> None:
    parent = NoProcess()
    parent.is_stopping = True
    Trial(PROGRAM, parent).begin()  # type: ignore[arg-type]
    assert parent.tries == 0
