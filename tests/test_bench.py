"""The measuring tool at work: real servers, real load, a fraction of a second each."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
from conftest import MakeDaemon
from daemon_process import Daemon, wait_for

from tlsmgr.bench import build
from tlsmgr.bench.drive import Generators, Tally
from tlsmgr.bench.loads import LOADS
from tlsmgr.bench.plan import for_filling, for_load, write_plan
from tlsmgr.bench.sandbox import postfix_missing
from tlsmgr.bench.servers import Wish, start_of
from tlsmgr.client import Client
from tlsmgr.log import Fatal
from tlsmgr.wire import ANNOUNCEMENT

PATIENCE = 100.0  # seconds for one run of the tool on a loaded machine
QUICK = ("--seconds", "0.1", "--rounds", "2")
SEED_REPLY = b"status\x000\x00seed\x00%b\x00\x00"

Json = dict[str, Any]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The tool, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tlsmgr.bench.main", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def measure(path: Path, *arguments: str, status: int = 0) -> Json:
    """What the tool writes with --json."""
    done = run(*arguments, "--json", str(path))
    assert done.returncode == status, done.stdout + done.stderr
    found: Json = json.loads(path.read_text())
    return found


def need_compiler() -> None:
    if build.compiler() is None:
        pytest.skip("there is no C compiler")


def need_postfix() -> None:
    if reason := postfix_missing():
        pytest.skip(reason)


# The tool as a whole.


def expect_consistent(
    found: Json, loads: Iterable[str], connections: Iterable[int], servers: Iterable[str]
) -> None:
    rows = {(r["load"], r["connections"], r["server"]): r for r in found["loads"]}
    assert set(rows) == set(itertools.product(loads, connections, servers))
    assert found["faults"] == []
    for (load, count, _), row in rows.items():
        assert len(row["rounds"]) == 2
        for one in row["rounds"]:
            assert one["requests"] > 0
            assert one["rate"] == pytest.approx(one["requests"] / one["seconds"])
            assert 0 < one["p50"] <= one["p99"] <= one["p99_9"] <= one["longest"]
            assert 0 < one["generator"] <= 1.1
            assert one["server_cpu"] >= 0
        assert row["median"]["rate"] == median(one["rate"] for one in row["rounds"])
        for base, ratios in row["ratios"].items():
            pairs = zip(row["rounds"], rows[load, count, base]["rounds"])
            assert ratios["rate"] == pytest.approx(median(a["rate"] / b["rate"] for a, b in pairs))


def test_all_loads_against_ours_and_the_ceiling(tmp_path: Path) -> None:
    need_compiler()
    found = measure(tmp_path / "json", "ours", "ceiling", *QUICK, "--connections", "1,64")
    expect_consistent(found, LOADS, [1, 64], ["ours", "ceiling"])
    assert found["bases"] == ["ours"]
    ours, ceiling = found["servers"]
    assert len(ours["memory"]) >= 2  # a parent, and workers
    assert min(ours["memory"]) > 1 << 20
    assert len(ceiling["memory"]) == 1
    assert ours["complaints"] == []


def test_a_thousand_clients(tmp_path: Path) -> None:
    arguments = ("--connections", "1000", "--loads", "mta,seed-churn", "--rounds", "1")
    found = measure(tmp_path / "json", "ours", "--seconds", "0.5", *arguments)
    assert [row["connections"] for row in found["loads"]] == [1000, 1000]
    assert all(one["requests"] > 0 for row in found["loads"] for one in row["rounds"])
    assert found["faults"] == []


def test_versus_stock(tmp_path: Path) -> None:
    need_postfix()
    arguments = ("--loads", "mta-churn", "--connections", "8")
    found = measure(tmp_path / "json", "--vs-stock", *QUICK, *arguments)
    expect_consistent(found, ["mta-churn"], [8], ["stock", "stock-tmpfs", "ours"])
    assert found["bases"] == ["stock", "stock-tmpfs"]
    assert [note["file_system"] == "tmpfs" for note in found["servers"][:2]] == [False, True]
    assert {name for row in found["loads"] for name in row["ratios"]} == {"stock", "stock-tmpfs"}


def test_scenes(tmp_path: Path) -> None:
    arguments = ("--loads", "none", "--scenes", "stall,updates,kill", "--rounds", "1")
    found = measure(tmp_path / "json", "ours", "--seconds", "0.5", *arguments)
    assert [row["scene"] for row in found["scenes"]] == ["stall", "updates", "kill"]
    for row in found["scenes"]:
        quiet, then = row["quiet"][0], row["disturbed"][0]
        assert then["requests"] > 0
        assert row["p99_ratio"] == pytest.approx(then["p99"] / quiet["p99"])
        assert row["longest"] >= then["p99"]
    killed = found["scenes"][2]["disturbed"][0]
    assert killed["server_cpu"] is None  # workers came and went
    assert killed["wrong"] == 0
    assert any("signal 9" in line for line in found["servers"][0]["complaints"])


def test_stock_answers_nobody_while_clients_stall(tmp_path: Path) -> None:
    need_postfix()
    arguments = ("--loads", "none", "--scenes", "stall,kill", "--rounds", "1")
    found = measure(tmp_path / "json", "stock-tmpfs", "--seconds", "0.5", *arguments)
    [row] = found["scenes"]  # it has no worker to kill
    assert row["quiet"][0]["requests"] > 0
    assert row["disturbed"][0]["requests"] == 0
    assert row["disturbed"][0]["waiting"] == 64
    assert row["longest"] > 1e6
    assert row["p99_ratio"] is None


def test_growth(tmp_path: Path) -> None:
    arguments = ("--loads", "none", "--growth", "500,2000", "--rounds", "1", "--seconds", "0.2")
    found = measure(tmp_path / "json", "ours", *arguments)
    assert [row["entries"] for row in found["growth"]] == [500, 2000]
    for row in found["growth"]:
        assert row["rounds"][0]["requests"] > 0
        assert row["file_bytes"] > 1200 * row["entries"]
        assert row["bytes_a_session_byte"] == row["file_bytes"] / (1200 * row["entries"])
        assert len(row["memory"]) >= 2
    assert found["faults"] == []


@pytest.mark.long
def test_sweep(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tlsmgr.bench.main", "ours", "--loads", "none", "--scenes", "sweep",
         "--seconds", "1", "--json", str(tmp_path / "json")],
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0
    [row] = json.loads((tmp_path / "json").read_text())["scenes"]
    assert row["scene"] == "sweep"
    assert row["disturbed"][0]["requests"] > 0
    assert row["p99_ratio"] > 0


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib of the extra `bench` is not installed")
    picture = tmp_path / "figures.svg"
    arguments = ("--loads", "seed", "--connections", "8", "--growth", "100", "--rounds", "1")
    done = run("ours", "--seconds", "0.1", *arguments, "--plot", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    text = picture.read_text()
    assert "<svg" in text
    assert "server CPU, µs a request, 8 clients" in text  # as a comment beside the glyphs


def test_report_on_a_terminal_is_a_table(daemon: Daemon) -> None:
    done = run(daemon.socket_path, *QUICK, "--loads", "seed", "--connections", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nobody watches: no progress bar
    heading, rule, row = done.stdout.splitlines()[:3]
    assert heading.split()[:4] == ["load", "clients", "server", "requests/s"]
    assert set(rule) == {"-", " "}
    assert row.split()[:3] == ["seed", "2", daemon.socket_path]
    assert "of the machine's CPU time" in done.stdout


def test_several_generators_share_the_clients(tmp_path: Path, daemon: Daemon) -> None:
    arguments = (daemon.socket_path, *QUICK, "--loads", "mta", "--connections", "7")
    found = measure(tmp_path / "json", *arguments, "--generators", "3")
    assert found["faults"] == []
    assert found["loads"][0]["rounds"][0]["requests"] > 0


def test_python_takes_the_place_of_the_compiler(tmp_path: Path, daemon: Daemon) -> None:
    done = run(daemon.socket_path, *QUICK, "--connections", "4", CC="/nonexistent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([line for line in done.stdout.splitlines() if daemon.socket_path in line]) >= 6
    assert "WORTHLESS" not in done.stdout


# Mistakes and mishaps.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--loads", "sed"], "sed: not one of seed,"),
        (["--connections", "0"], "not a number over 0: 0"),
        (["--rounds", "x"], "not a number over 0: x"),
        (["ours", "ours"], "named twice"),
        (["--json", "/nonexistent/file"], "cannot be written"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 64
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nonexistent"], "/nonexistent is no socket, no checkout"),
        (["ours", "-o", "tlsmgr_worker_processes=many"], "does not start: "),
    ],
)
def test_a_server_that_cannot_be_had_is_fatal(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_everything() -> None:
    text = run("--help").stdout
    for word in (*LOADS, "stall", "sweep", "kill", "updates", "stock-tmpfs", "ceiling"):
        assert f"  {word} " in text


def test_a_server_that_answers_wrongly_is_found_out(tmp_path: Path) -> None:
    need_compiler()
    with start_of("ceiling")(Wish("ceiling", tmp_path, {})) as server:
        arguments = (server.socket, *QUICK, "--connections", "2", "--loads", "seed,lookup,update")
        found = measure(tmp_path / "json", *arguments, status=1)
    assert [f"{n} 2 {server.socket}: " in "".join(found["faults"]) for n in LOADS][:3] == [
        True,  # canned seeds are no random ones
        True,
        False,
    ]
    assert all("wrong replies" in fault for fault in found["faults"])


def test_sigterm_ends_everything_and_shows_what_there_is(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tlsmgr.bench.main", "ours", "--seconds", "60", "--loads", "seed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as tool:
        family: list[psutil.Process] = []

        def measures() -> bool:
            family[:] = psutil.Process(tool.pid).children(recursive=True)
            return any("seed-10000-1.plan" in " ".join(cmdline(p)) for p in family)

        wait_for(measures, "a load generator")
        tool.send_signal(signal.SIGTERM)
        output, errors = tool.communicate(timeout=PATIENCE)
    assert tool.returncode == 130, errors
    assert b"data on" in output
    wait_for(lambda: not any(p.is_running() for p in family), "the end of all processes")
    assert list(tmp_path.iterdir()) == []


def cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(process.cmdline())
    return []


# Servers.


def test_a_running_server_is_known_by_all_its_processes(
    tmp_path: Path, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=3")
    with start_of(daemon.socket_path)(Wish(daemon.socket_path, tmp_path, {})) as server:
        found = {process.pid for process in server.processes()}
        assert found == {daemon.pid, *(worker.pid for worker in daemon.workers())}
        assert len(found) == 4
        assert server.workers() == []  # not ours to kill
    assert daemon.is_running


# Generators: both do the same.


@pytest.fixture(params=["C", "Python"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Sequence[str]:
    """What starts a load generator."""
    if request.param == "Python":
        return build.GENERATOR_IN_PYTHON
    need_compiler()
    return build.generator_command(tmp_path)


def drive(
    command: Sequence[str], plan: Path, path: str, connections: int = 3, seconds: float = 0.2
) -> Tally:
    with Generators(command, plan, "server", path, connections, seconds) as generators:
        generators.go()
        return generators.result()


def load_plan(directory: Path, name: str) -> Path:
    write_plan(directory / name, for_load(LOADS[name], range(20)))
    return directory / name


def test_filling_stores_every_session_once(
    command: Sequence[str], tmp_path: Path, daemon: Daemon
) -> None:
    write_plan(tmp_path / "fill", for_filling(range(20)))
    tally = drive(command, tmp_path / "fill", daemon.socket_path, seconds=30)
    assert (tally.requests, tally.wrong, tally.lost) == (20, 0, 0)
    assert tally.elapsed < 30e9
    tally = drive(command, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert tally.requests > 20
    assert tally.wrong == 0
    assert tally.histogram.total() == tally.requests
    with Client(daemon.socket_path) as client:
        client.update("smtp", cache_id := read_id(tmp_path / "fill"), b"another session")
        assert client.lookup("smtp", cache_id) == b"another session"
    tally = drive(command, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert 0 < tally.wrong < tally.requests


def read_id(plan: Path) -> bytes:
    """The first cache id in a plan."""
    return plan.read_bytes().split(b"cache_id\0", 1)[1].split(b"\0", 1)[0]


def test_sessions_that_are_not_there_are_wrong(
    command: Sequence[str], tmp_path: Path, daemon: Daemon
) -> None:
    tally = drive(command, load_plan(tmp_path, "lookup"), daemon.socket_path)
    assert tally.wrong == tally.requests > 0
    assert tally.first_wrong == b"status\x004294967295\x00sessio"


@contextlib.contextmanager
def scripted(directory: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats each connection as `serve` does, one after the other."""
    path = str(directory / "scripted")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener is shut down at the end
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_replies_in_pieces_are_whole(command: Sequence[str], tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT[:5])
        connection.sendall(ANNOUNCEMENT[5:])
        while connection.recv(1000):
            reply = SEED_REPLY % os.urandom(22).hex().encode()
            for piece in (reply[:1], reply[1:40], reply[40:]):
                connection.sendall(piece)

    with scripted(tmp_path, serve) as path:
        tally = drive(command, load_plan(tmp_path, "seed"), path, connections=1)
    assert tally.requests > 0
    assert (tally.wrong, tally.lost) == (0, 0)


def test_a_request_whose_connection_closes_is_made_again(
    command: Sequence[str], tmp_path: Path
) -> None:
    served = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT)
        while connection.recv(1000):
            served.append(True)
            if len(served) % 3 == 0:
                return
            connection.sendall(SEED_REPLY % os.urandom(22).hex().encode())

    with scripted(tmp_path, serve) as path:
        tally = drive(command, load_plan(tmp_path, "seed"), path, connections=1)
    assert tally.lost > 0
    assert tally.wrong == 0
    assert tally.requests in range(2 * tally.lost - 2, 2 * tally.lost + 3)


def test_a_server_that_falls_silent_is_no_fast_one(command: Sequence[str], tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(ANNOUNCEMENT)
        while connection.recv(1000):
            pass

    with scripted(tmp_path, serve) as path:
        tally = drive(command, load_plan(tmp_path, "seed"), path, connections=1, seconds=1.2)
    assert (tally.requests, tally.waiting) == (0, 1)
    assert tally.longest > 1e9


def test_a_server_that_is_no_tlsmgr_is_fatal(command: Sequence[str], tmp_path: Path) -> None:
    with (
        scripted(
            tmp_path, lambda connection: connection.sendall(b"220 mail.test ESMTP Postfix\r\n")
        ) as path,
        pytest.raises(Fatal, match=r"server: .* does not announce itself as tlsmgr"),
    ):
        drive(command, load_plan(tmp_path, "seed"), path)


def test_a_server_that_is_not_there_is_fatal(command: Sequence[str], tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="No such file or directory"):
        drive(command, load_plan(tmp_path, "seed"), str(tmp_path / "nothing"))
