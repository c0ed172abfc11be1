"""A lane of the farm process with an engine of the test, in the real thread: queues and stalls."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest
from support.daemon_process import PATIENCE, wait_for

from tlsmgr import log
from tlsmgr.farm.backlog import MOST_ENTRIES, Write
from tlsmgr.farm.codec import LARGEST_VALUE
from tlsmgr.farm.engine import NOTHING, Job, Outcome, Settings, Value
from tlsmgr.processes import farm_lane
from tlsmgr.processes.farm_lane import (
    ABORT_INTERVAL,
    BYTES_FOUND,
    MOST_LOOKUPS,
    Lane,
    Lookup,
    Result,
)

DEADLINE = 0.05
STALL = 3 * DEADLINE


class FakeEngine:
    """Does what ``answer`` says; the jobs are kept. ``gate`` closed: it hangs until aborted."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.answer: Callable[[Job], Outcome] = lambda job: Outcome(
            [Value(0, b"value of " + keys[0]) for keys in job.lookups]
        )
        self.gate = threading.Event()
        self.gate.set()
        self.aborts = 0

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        aborts = self.aborts
        while not self.gate.wait(0.002):
            if self.aborts > aborts:
                raise ConnectionError("shut down")
        return self.answer(job)

    def abort(self) -> None:
        self.aborts += 1


class Bench:
    """A lane whose clock the test has. ``lines`` are the log lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = FakeEngine()
        self.lines: list[str] = []
        self.now = 1000.0
        monkeypatch.setattr(farm_lane, "make", lambda settings, timeout: self.engine)
        for name in ("info", "warning", "error"):
            monkeypatch.setattr(log, name, self.lines.append)
        self.read_fd, wake_fd = os.pipe()
        settings = Settings("fake", "store", {}, DEADLINE)
        self.lane = Lane(settings, wake_fd, self.now, lambda: 0.0)

    def run(self) -> list[Result]:
        return self.lane.run(self.now)

    def hang(self, number: int) -> None:
        """Have the thread hang with a lookup."""
        self.engine.gate.clear()
        self.lane.add_lookup(lookup(number))
        jobs = len(self.engine.jobs)
        self.run()
        wait_for(lambda: len(self.engine.jobs) > jobs, "the thread to have the job")

    def finish(self) -> list[Result]:
        """Wait for the thread, and take what it has done."""
        assert select.select([self.read_fd], [], [], PATIENCE)[0], "the thread is not done"
        os.read(self.read_fd, 1)
        return self.run()

    def open(self) -> None:
        """Have the first probe succeed."""
        self.run()
        self.finish()
        assert self.lane.is_open


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(monkeypatch)
    yield bench
    bench.engine.gate.set()


def lookup(number: int) -> Lookup:
    return Lookup(5, 1, number, (b"k%d" % number,))


def test_a_probe_first(bench: Bench) -> None:
    assert bench.lane.add_lookup(lookup(0)) == [(lookup(0), NOTHING)], "nobody waits for it"
    bench.open()
    assert bench.engine.jobs == [Job((), (), 1000.0)]
    assert bench.lines == ["store answers: sessions are shared"]


def test_what_gathers_while_a_job_runs_goes_together(bench: Bench) -> None:
    bench.open()
    bench.engine.gate.clear()
    assert bench.lane.add_lookup(lookup(1)) == []
    bench.run()
    for number in range(2, 12):
        bench.lane.add_lookup(lookup(number))
    bench.lane.add_write(Write((b"key",), b"value", bench.now + 60))
    bench.engine.gate.set()
    assert bench.finish() == [(lookup(1), Value(0, b"value of k1"))]
    assert bench.finish() == [(lookup(n), Value(0, b"value of k%d" % n)) for n in range(2, 12)]
    sizes = [(len(job.writes), len(job.lookups)) for job in bench.engine.jobs]
    assert sizes == [(0, 0), (0, 1), (1, 10)]


def test_many_writes_do_not_hold_up_lookups(bench: Bench) -> None:
    bench.open()
    for number in range(500):
        bench.lane.add_write(Write((b"%d" % number,), b"value", bench.now + 60))
    bench.lane.add_lookup(lookup(1))
    bench.run()
    assert bench.finish() == [(lookup(1), Value(0, b"value of k1"))]
    assert len(bench.engine.jobs[1].writes) == 128


def test_lookups_are_bounded(bench: Bench) -> None:
    bench.open()
    answers = [bench.lane.add_lookup(lookup(number)) for number in range(MOST_LOOKUPS + 2)]
    assert answers[-2:] == [[(lookup(0), NOTHING)], [(lookup(1), NOTHING)]]
    assert not any(answers[:-2])


def test_what_no_host_has_stored_is_nothing(bench: Bench) -> None:
    """A value that is longer than a session may be, and more than all the workers could take."""
    bench.open()
    too_long, long = Value(0, bytes(LARGEST_VALUE + 1)), Value(0, bytes(LARGEST_VALUE))
    number = BYTES_FOUND // LARGEST_VALUE
    values = [too_long, *[long] * (number + 1), Value(0, b"short"), NOTHING]
    bench.engine.answer = lambda job: Outcome(list(values))
    for at in range(len(values)):
        bench.lane.add_lookup(lookup(at))
    bench.run()
    found = [value for _, value in bench.finish()]
    assert found == [NOTHING, *[long] * number, NOTHING, NOTHING, NOTHING]


def test_an_answer_without_end(bench: Bench) -> None:
    """The limit of this process is a MemoryError in the library."""
    bench.open()

    def fail(job: Job) -> Outcome:
        raise MemoryError

    bench.engine.answer = fail
    for number in range(5):
        bench.lane.add_lookup(lookup(number))
        bench.run()
        assert bench.finish() == [(lookup(number), NOTHING)]
    assert bench.engine.aborts == 5, "the connection is half used"
    assert bench.lines[1:] == [
        "store: its answer is too long; sessions are not shared until it answers"
    ]


def test_a_stall_opens_the_breaker_and_ends_the_job(bench: Bench) -> None:
    bench.open()
    bench.hang(1)
    bench.now += STALL - 0.01
    assert bench.run() == []
    assert bench.lane.is_open
    bench.now += 0.0125
    bench.lane.add_lookup(lookup(2))
    assert bench.run() == [(lookup(2), NOTHING)]
    assert not bench.lane.is_open
    assert bench.finish() == [(lookup(1), NOTHING)], "it was aborted"
    assert bench.lines[1:] == [
        "store: no answer within 152 ms; sessions are not shared until it answers"
    ]
    assert bench.lane.add_lookup(lookup(3)) == [(lookup(3), NOTHING)]
    bench.engine.gate.set()
    bench.now += 1.1
    bench.run()
    bench.finish()
    assert bench.lane.is_open
    assert bench.lines[2:] == ["store answers: sessions are shared"]


def test_when_there_is_something_to_do(bench: Bench) -> None:
    """The loop sleeps until then: for a job the time of its stall, else that of a probe."""
    assert bench.lane.due(bench.now) == 0.0
    bench.open()
    assert bench.lane.due(bench.now) == float("inf")
    bench.hang(1)
    assert bench.lane.due(bench.now + 0.1) == pytest.approx(STALL - 0.1)
    assert bench.lane.due(bench.now + 9.0) == 0.0
    bench.now += STALL + 0.001
    bench.run()
    assert bench.lane.due(bench.now) == pytest.approx(ABORT_INTERVAL)
    bench.engine.gate.set()
    bench.finish()
    assert 0.0 < bench.lane.due(bench.now) <= 1.0, "a probe"


def test_a_loop_that_is_late_itself_is_no_stall(bench: Bench) -> None:
    bench.open()
    bench.hang(1)
    bench.now += 5.0  # this process did not run
    assert bench.run() == []
    assert bench.lane.is_open
    bench.now += STALL + 0.001
    bench.run()
    assert not bench.lane.is_open


def test_what_an_overdue_job_found_is_an_answer(bench: Bench) -> None:
    bench.open()
    bench.engine.abort = lambda: None  # type: ignore[method-assign]
    bench.hang(1)
    bench.now += STALL + 0.001
    bench.run()
    bench.engine.gate.set()
    assert bench.finish() == [(lookup(1), Value(0, b"value of k1"))]
    assert not bench.lane.is_open, "a probe decides"


def test_a_thread_that_never_comes_back(bench: Bench) -> None:
    """As with a name server that hangs: no second thread, no wait, and bounded memory."""
    bench.open()
    bench.engine.abort = lambda: None  # type: ignore[method-assign]
    bench.hang(1)
    threads = threading.active_count()
    for step in range(3000):
        bench.now += 0.05
        bench.lane.add_write(Write((b"%d" % step,), b"value", bench.now + 60))
        assert bench.lane.add_lookup(lookup(step)) in ([], [(lookup(step), NOTHING)])
        bench.run()
    assert threading.active_count() == threads
    assert len(bench.engine.jobs) == 2
    assert bench.lane.dropped == 3000 - MOST_ENTRIES
    assert len(bench.lines) == 2


def test_five_failures(bench: Bench) -> None:
    bench.open()

    def fail(job: Job) -> Outcome:
        raise ConnectionRefusedError("Connection refused.")  # a sentence, as of the client library

    bench.engine.answer = fail
    for number in range(5):
        assert bench.lane.is_open
        bench.lane.add_lookup(lookup(number))
        bench.run()
        assert bench.finish() == [(lookup(number), NOTHING)], "at once, not at the deadline"
    assert not bench.lane.is_open
    assert bench.lines[1:] == [
        "store: ConnectionRefusedError: Connection refused;"
        " sessions are not shared until it answers"
    ]


def test_writes_wait_for_the_engines_return_and_expire(bench: Bench) -> None:
    for number in range(MOST_ENTRIES + 10):
        life = 0.5 if number % 2 else 60.0
        bench.lane.add_write(Write((b"%d" % number,), b"value", bench.now + life))
    bench.open()
    bench.now += 1.0
    bench.run()
    while sum(len(job.writes) for job in bench.engine.jobs) < MOST_ENTRIES // 2:
        bench.finish()
    assert all(len(job.writes) <= 128 for job in bench.engine.jobs)
    assert bench.lane.dropped == 10


def test_refused_writes_are_one_line_each_way(bench: Bench) -> None:
    bench.open()
    bench.engine.answer = lambda job: Outcome(refused=len(job.writes), refusal="OOM")
    for _ in range(3):
        bench.lane.add_write(Write((b"key",), b"value", bench.now + 60))
        bench.run()
        bench.finish()
    bench.engine.answer = lambda job: Outcome([NOTHING] * len(job.lookups))
    bench.lane.add_lookup(lookup(1))
    bench.run()
    bench.finish()
    assert bench.lines[1:] == ["store refuses to store sessions: OOM"]
    bench.lane.add_write(Write((b"key",), b"value", bench.now + 60))
    bench.run()
    bench.finish()
    assert bench.lines[2:] == ["store stores sessions again"]
    assert bench.lane.dropped == 3
    assert bench.lane.is_open


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)

    def missing(settings: Settings, timeout: float) -> FakeEngine:
        raise ModuleNotFoundError("No module named 'redis'")

    monkeypatch.setattr(farm_lane, "make", missing)
    bench.run()
    bench.finish()
    assert bench.lines == [
        "store: ModuleNotFoundError: No module named 'redis'; sessions are not shared"
    ]
    bench.lane.add_write(Write((b"key",), b"value", bench.now + 60))
    assert bench.lane.dropped == 1
    assert bench.lane.due(bench.now) == float("inf")
