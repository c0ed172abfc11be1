"""Signals of the parent: its queue, and the watchdog."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from support.daemon_process import wait_for

from tlsmgr.processes import signals

PROGRAM = """
import time
from tlsmgr.processes.signals import Watchdog
watchdog = Watchdog({timeout})
print(flush=True)
{act}
"""


@contextlib.contextmanager
def program(act: str, timeout: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a watchdog, which is made when the block begins."""
    text = PROGRAM.format(act=act, timeout=timeout)
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_the_watchdog_ends_a_process_that_makes_no_progress() -> None:
    with program("watchdog.restart(); time.sleep(600)", 0.3) as process:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert err.endswith(b": fatal: watchdog timeout\n")


def test_the_watchdog_ends_one_that_spins() -> None:
    with program("watchdog.restart()\nwhile True: pass", 0.3) as process:
        assert process.wait(30) == 1


def test_it_is_the_third_step_that_ends_it() -> None:
    """Not an earlier one: a process that was suspended has one step for nothing."""
    act = "\n".join(
        (
            "import os, signal",
            "for step in range(1, 5):",
            "    if step == 3: watchdog.restart()",
            "    print(step, flush=True)",
            "    os.kill(os.getpid(), signal.SIGALRM)",
            "print('three after the restart', flush=True)",
            "os.kill(os.getpid(), signal.SIGALRM)",
        )
    )
    with program(act, 600.0) as process:
        assert process.stdout is not None
        output = process.stdout.read()  # communicate() does not see what was read ahead
        assert output == b"1\n2\n3\n4\nthree after the restart\n"
        assert process.wait(30) == 1


def test_progress_keeps_it_quiet() -> None:
    act = "for _ in range(24): watchdog.restart(); time.sleep(0.05)"
    with program(act, 1.0) as process:
        assert process.wait(30) == 0


def test_it_can_be_stopped() -> None:
    with program("watchdog.restart(); watchdog.stop(); time.sleep(0.4)", 0.1) as process:
        assert process.wait(30) == 0


def test_a_process_that_was_suspended_goes_on() -> None:
    """Its time is over when it is continued, but it makes progress at once."""
    act = "\n".join(
        (
            "watchdog.restart()",
            "end = time.monotonic() + 1.5",
            "while time.monotonic() < end: watchdog.restart(); time.sleep(0.01)",
        )
    )
    with program(act, 0.9) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.1)
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == 0


def test_the_queue() -> None:
    """Signals are numbers in a pipe; several of one kind may be one."""
    numbers = signals._QUEUED_SIGNALS
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with signals.queue() as descriptor:
            assert signals.drain(descriptor) == b""
            for number in numbers:
                os.kill(os.getpid(), number)
            found = b""

            def all_came() -> bool:
                nonlocal found
                found += signals.drain(descriptor)
                return set(found) == set(numbers)

            wait_for(all_came, "all signals")
            os.close(descriptor)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_blocked_signals_come_after_the_fork() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        mask = signals.block()
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == []
        signals.restore(mask)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_that_a_start_has_blocked_come_with_the_queue() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        signals.block()
        os.kill(os.getpid(), signal.SIGHUP)
        with signals.queue() as descriptor:
            wait_for(lambda: signals.drain(descriptor) == bytes([signal.SIGHUP]), "the signal")
            os.close(descriptor)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [*signals.STOP_SIGNALS, signal.SIGHUP])
def test_the_state_of_a_child(number: signal.Signals) -> None:
    """SIGTERM ends it, the terminal's signals do not; whatever was blocked before the fork."""
    pid = os.fork()
    if not pid:
        try:
            for each in signals._QUEUED_SIGNALS:
                signal.signal(each, signals._queued)
            signals.block()
            signals.reset_in_child()
            os.kill(os.getpid(), number)
        finally:
            os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (-signal.SIGTERM if number == signal.SIGTERM else 7)
