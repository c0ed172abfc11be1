"""When ours does not start under master(8), Postfix's own tlsmgr runs in its place, at once.

One private system for all faults. For each: a fresh checkout is broken, Postfix is reloaded, and
mail must arrive over TLS, with one warning in the log that has the reason; then the checkout is
mended, Postfix is reloaded, and ours serves again.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.postfix_instance import PostfixInstance, postfix_missing, wait_until
from support.settled_files import write_settled
from support.switching_systems import (
    answers,
    append,
    make_checkout,
    make_farm,
    private,
    reload,
    running_now,
    running_pid,
    site_packages,
    switch,
    wrap_python,
)

from tlsmgr.bootstrap import NOTE
from tlsmgr.ctl.status_fetch import fetch
from tlsmgr.install.launcher import NAME
from tlsmgr.status_object import IN_PLACE

pytestmark = pytest.mark.skipif(postfix_missing() is not None, reason=str(postfix_missing()))

SILENT = "it died without a message"
PACKAGES = ("cryptography", "lmdb", "posix_ipc", "pybase64")
NO_MEMORY = "def SharedMemory(size):\n    raise SharedMemoryError('no shm')"
NO_WORKER = "import os\n\ndef main(*_):\n    os._exit(BOOT_ERROR)"
IN_THE_JAIL = "_enter = enter\ndef enter(*arguments):\n    _enter(*arguments)\n    "


class Fault(NamedTuple):
    """How to break a checkout, and the reason that the warning must have."""

    name: str
    apply: Callable[[Path], object]
    reason: str


def remove_package(name: str) -> Callable[[Path], None]:
    def apply(checkout: Path) -> None:
        for entry in site_packages(checkout).glob(f"{name}*"):
            if entry.is_symlink() or not entry.is_dir():
                entry.unlink()
            else:  # `enable` has repaired the package, where the checkout had a link
                shutil.rmtree(entry)

    return apply


def empty_library(checkout: Path) -> None:
    (library,) = site_packages(checkout).glob("posix_ipc*.so")
    library.unlink()
    library.touch()


def replace_python(text: str) -> Callable[[Path], None]:
    def apply(checkout: Path) -> None:
        python = checkout / ".venv/bin/python"
        python.unlink()
        python.write_text(text)
        python.chmod(0o755)

    return apply


def dangling_python(checkout: Path) -> None:
    python = checkout / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nonexistent/python3")


def other_python(checkout: Path) -> None:
    packages = site_packages(checkout)
    packages.parent.rename(packages.parent.with_name("python3.1"))


def move(checkout: Path) -> None:
    checkout.rename(checkout.with_name("moved"))


def adding(module: str, code: str) -> Callable[[Path], None]:
    return lambda checkout: append(checkout, module, code)


FAULTS = [
    *(Fault(f"no {name}", remove_package(name), f"No module named '{name}") for name in PACKAGES),
    Fault("empty library", empty_library, "ImportError: .*file too short"),
    Fault("other Python", other_python, "has no packages for python3"),
    Fault("dangling Python", dangling_python, "cannot execute .*/python"),
    Fault("Python exits", replace_python("#!/bin/sh\nexit 1\n"), SILENT),
    Fault("Python is killed", replace_python("#!/bin/sh\nkill -9 $$\n"), SILENT),
    Fault("Python is empty", replace_python(""), SILENT),
    Fault("moved checkout", move, "cannot execute .*/python"),
    Fault(
        "no bootstrap", lambda c: (c / "tlsmgr/bootstrap.py").unlink(), "cannot read .*bootstrap"
    ),
    Fault("broken bootstrap", adding("bootstrap.py", "("), SILENT),
    Fault("syntax error", adding("service.py", "def:"), "SyntaxError: .*service.py, line"),
    Fault("exception in import", adding("wire/reader.py", "1 / 0"), "ZeroDivisionError: "),
    Fault("fatal before the jail", adding("shm.py", NO_MEMORY), "no shm"),
    Fault(
        "exception before the jail",
        adding("processes/setup.py", "preload = None"),
        "TypeError: .*not callable",
    ),
    Fault(
        "exception in the jail",
        adding("processes/jail.py", IN_THE_JAIL + "1 / 0"),
        "ZeroDivisionError: ",
    ),
    Fault(
        "killed in the jail",
        adding("processes/jail.py", IN_THE_JAIL + "os.kill(os.getpid(), 9)"),
        SILENT,
    ),
    Fault(
        "workers cannot start",
        adding("processes/worker_start.py", NO_WORKER),
        "workers cannot start",
    ),
    Fault(
        "no memory",
        lambda c: wrap_python(c, 'ulimit -v 30000; exec "$real" "$@"\n'),
        f"MemoryError|failed to map|{SILENT}",
    ),
]


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tlsmgr-fallback-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def enabled(scratch: Path) -> Iterator[PostfixInstance]:
    """A system with mail, enabled with the checkout at "check out's" of the directory."""
    make_checkout(scratch / "check out's")
    with private(make_farm(scratch / "sbin"), mail=True, chroot=True) as system:
        outcome = switch(system, "enable", checkout=scratch / "check out's")
        assert outcome.status == 0, outcome.text
        yield system


@pytest.fixture
def checkout(scratch: Path, enabled: PostfixInstance) -> Iterator[Path]:
    """The checkout that it runs, which may be broken; mended at the end."""
    path = scratch / "check out's"
    yield path
    mend(path)
    reload(enabled)
    assert answers(enabled)
    assert running_now(enabled) == NAME


def mend(checkout: Path) -> None:
    for path in (checkout, checkout.with_name("moved")):
        shutil.rmtree(path, ignore_errors=True)
    make_checkout(checkout)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_start_that_fails(enabled: PostfixInstance, checkout: Path, fault: Fault) -> None:
    warned = len(enabled.log_lines("does not start"))
    fault.apply(checkout)
    reload(enabled)
    enabled.deliver()  # workers of the one before may still serve
    wait_until(lambda: answers(enabled) and running_now(enabled) == "tlsmgr", 30)
    (warning,) = enabled.log_lines("does not start")[warned:]
    assert re.search(fault.reason, warning), warning
    status = fetch(str(enabled.queue / "private/tlsmgr"), 30.0)
    assert (status.state, status.pid) == ("degraded", IN_PLACE)
    assert re.search(f"was started in its place: .*({fault.reason})", status.reasons[0])
    assert not enabled.log_lines("throttling")


def test_a_reload_during_a_start_is_no_failure(enabled: PostfixInstance, checkout: Path) -> None:
    warned = len(enabled.log_lines("does not start"))
    append(checkout, "processes/jail.py", IN_THE_JAIL + "import time; time.sleep(0.5)")
    reload(enabled)
    client = threading.Thread(target=answers, args=(enabled,))
    client.start()
    wait_until(lambda: running_now(enabled) == NAME, 30)
    reload(enabled)
    client.join()
    # The workers from before may still answer.
    wait_until(lambda: answers(enabled) and running_now(enabled) == NAME, 30)
    assert len(enabled.log_lines("does not start")) == warned


def test_a_death_in_service_is_no_failed_start(enabled: PostfixInstance, checkout: Path) -> None:
    warned = len(enabled.log_lines("does not start"))
    reload(enabled)
    assert answers(enabled)
    wait_until(lambda: (enabled.queue / NOTE).stat().st_size == 0, 30)
    before = running_pid(enabled)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    # Its workers may still answer.
    wait_until(lambda: answers(enabled) and running_pid(enabled) not in (before, None), 30)
    wait_until(lambda: running_now(enabled) == NAME, 30)  # a shell starts it
    wait_until(lambda: (enabled.queue / NOTE).stat().st_size == 0, 30)
    assert len(enabled.log_lines("does not start")) == warned


@pytest.mark.parametrize("state", ["starting", "failed"])
def test_a_restart_tries_ours_again(enabled: PostfixInstance, state: str) -> None:
    warned = len(enabled.log_lines("does not start"))
    note = f"{state} {enabled.master_pid()} reason\n"
    enabled.master_cf = (enabled.config / "master.cf").read_text()
    enabled.stop()
    (enabled.queue / NOTE).write_text(note)
    enabled.start()
    assert answers(enabled)
    assert running_now(enabled) == NAME
    assert len(enabled.log_lines("does not start")) == warned


def test_a_main_cf_that_neither_accepts(scratch: Path) -> None:
    """One line of ours, and Postfix's own."""
    with private(make_farm(scratch / "other")) as system:
        assert switch(system, "enable").status == 0
        main_cf = system.config / "main.cf"
        write_settled(main_cf, f"{main_cf.read_text()}tls_random_bytes = many\n")
        reload(system)
        reason = "bad numerical configuration: tls_random_bytes = many"
        wait_until(lambda: not answers(system, 1.0), 30)  # workers of the one before may serve
        system.wait_log(f"warning: tlsmgr does not start: {reason}")
        system.wait_log(f"fatal: {reason}")
