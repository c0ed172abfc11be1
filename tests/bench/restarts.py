"""restarts - the scenes in which master(8) starts the server again: reloads, and kill -9.

Each server runs as the tlsmgr service of a private Postfix on loopback, chroot as in Debian. One
client requests seeds, each on a new connection; its longest wait is the figure. One that Postfix
cannot run as its service, such as a socket, is left out. Needs root and Postfix.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from support.checkout import CHECKOUT
from support.postfix_instance import PostfixInstance
from support.postfix_sandbox import daemon_directory, postconf, postfix_missing

from bench.figures import measure
from bench.mail import STOCK_DATA
from bench.runs import Bench
from bench.scenes import SceneRow
from bench.servers import Server, ServerSpec, wait_for_socket
from tlsmgr.install import installation
from tlsmgr.install.launcher import Launcher
from tlsmgr.log import Fatal

LOAD, CLIENTS = "seed-churn", 1
LEAST = 1.5  # seconds of a round
DELAY = 0.5  # seconds before the restart
START_LIMIT = 15.0  # seconds for the service to be there


class Restart(NamedTuple):
    """What is done to the Postfix system and to the process that its master(8) started."""

    act: Callable[[PostfixInstance, psutil.Process], None]
    purpose: str


def _reload(postfix: PostfixInstance, service: psutil.Process) -> None:
    os.kill(postfix.master_pid(), signal.SIGHUP)


def _edit(postfix: PostfixInstance, service: psutil.Process) -> None:
    postfix.main_cf["smtp_helo_name"] = f"edit-{time.time_ns()}.test"
    postfix.write_main_cf()
    os.kill(postfix.master_pid(), signal.SIGHUP)


def _kill(postfix: PostfixInstance, service: psutil.Process) -> None:
    service.kill()


RESTARTS: Mapping[str, Restart] = {
    "reload": Restart(_reload, "Postfix is reloaded; every seed is on a new connection"),
    "edit": Restart(_edit, "the same, after a change of main.cf outside the TLS policy"),
    "crash": Restart(_kill, "the process that master(8) started is killed; the same load"),
}


def run_restarts(
    bench: Bench, names: Sequence[str], scenes: Sequence[str], spec: ServerSpec
) -> Iterator[SceneRow]:
    """Run these scenes on each of these servers, round by round, and yield the rows."""
    if reason := postfix_missing():
        raise Fatal(f"cannot measure a restart by master(8): {reason}")
    with contextlib.ExitStack() as stack:
        systems = {
            name: stack.enter_context(_system(name, spec))
            for name in names
            if name in STOCK_DATA or _checkout(name) is not None
        }
        rows = [SceneRow(scene, name, [], []) for scene in scenes for name in systems]
        for _ in range(bench.rounds):
            for row in rows:
                bench.tick(f"{row.scene} {row.server}")
                _measure(bench, systems[row.server], row)
        yield from rows


def _checkout(name: str) -> Path | None:
    """Return the checkout of ours that this name stands for."""
    path = CHECKOUT if name == "ours" else Path(name).resolve()
    return path if (path / "tlsmgr/bootstrap.py").exists() else None


@contextlib.contextmanager
def _system(name: str, spec: ServerSpec) -> Iterator[PostfixInstance]:
    """Start a Postfix whose tlsmgr is that server."""
    with contextlib.ExitStack() as stack:
        checkout = None if name in STOCK_DATA else _checkout(name)
        command = stack.enter_context(_launcher(checkout, spec)) if checkout else "tlsmgr"
        postfix = PostfixInstance(
            tlsmgr=command,
            chroot=True,
            data_parent=STOCK_DATA.get(name) or spec.disk,
            parameters=spec.all_parameters,
        )
        if checkout and spec.options:
            (postfix.config / "tlsmgr.cf").write_text("\n".join((*spec.options, "")))
        stack.enter_context(postfix)
        wait_for_socket(str(postfix.socket))  # which has master(8) start it
        if checkout:
            _expect_ours(postfix)
        yield postfix


def _expect_ours(postfix: PostfixInstance) -> None:
    """Check that it runs, and not Postfix's own in its place. Fatal with the log if not."""
    try:
        postfix.wait_log(r"/tlsmgr\[\d+\]: tlsmgr \S+ starts: ", timeout=START_LIMIT)
    except TimeoutError:
        raise Fatal(f"ours does not start: {postfix.log()}") from None


@contextlib.contextmanager
def _launcher(checkout: Path, spec: ServerSpec) -> Iterator[str]:
    """Write the launcher that `tlsmgr-postfix enable` installs; yield its path."""
    found = installation.find(str(checkout))._replace(python=sys.executable)
    with tempfile.TemporaryDirectory(prefix="launch-", dir=spec.disk) as directory:
        os.chmod(directory, 0o755)
        os.symlink(f"{daemon_directory()}/tlsmgr", f"{directory}/tlsmgr")
        commands = postconf("-d", "-h", "command_directory")
        with Launcher(directory, commands).candidate(found) as path:
            yield path


def _measure(bench: Bench, postfix: PostfixInstance, row: SceneRow) -> None:
    server = Server(row.server, str(postfix.socket), postfix.processes)
    row.quiet.append(bench.run(server, LOAD, CLIENTS))
    seconds = max(bench.seconds, LEAST)
    generators = bench.generators(server, LOAD, CLIENTS, seconds=seconds)
    act = RESTARTS[row.scene].act
    row.disturbed.append(measure(generators, server, _restarting(postfix, act)))


@contextlib.contextmanager
def _restarting(
    postfix: PostfixInstance, act: Callable[[PostfixInstance, psutil.Process], None]
) -> Iterator[None]:
    """Do it a moment after the load began."""
    timer = threading.Timer(DELAY, act, (postfix, _service(postfix)))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def _service(postfix: PostfixInstance) -> psutil.Process:
    """Return the process that master(8) started as its tlsmgr service, once there is one."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        for process in psutil.Process(postfix.master_pid()).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "tlsmgr":
                    return process
        time.sleep(0.01)
    raise Fatal("master(8) does not start the server")
