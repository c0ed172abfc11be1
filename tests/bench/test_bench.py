"""The measuring tool at work: real servers, real load, a fraction of a second each."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import psutil
import pytest
from support.bench_tool import PATIENCE, QUICK, Json, measure, need_compiler, need_postfix, run
from support.daemon_process import Daemon, wait_for

from bench.loads import LOADS
from bench.servers import ServerSpec, start_of

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
    assert killed["server_cpu"] > 0  # of those that were killed as well
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
        [sys.executable, "-m", "bench.main", "ours", "--loads", "none", "--scenes", "sweep",
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
    with start_of("ceiling")(ServerSpec("ceiling", tmp_path, {})) as server:
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
        [sys.executable, "-m", "bench.main", "ours", "--seconds", "60", "--loads", "seed"],
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
