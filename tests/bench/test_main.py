"""The measuring tool as a program: real servers, real load, a fraction of a second each."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import psutil
import pytest
from support.bench_tool import (
    COMMAND,
    NEEDS_COMPILER,
    PATIENCE,
    QUICK,
    Json,
    environment,
    measure,
    run,
)
from support.checkout import CHECKOUT
from support.daemon_process import Daemon, wait_for
from support.postfix_instance import need_postfix

from bench import options
from bench.loads import LOADS
from bench.mail import MAIL
from bench.servers import ServerSpec, start_of
from tlsmgr import __version__

# Loads, scenes, growth.


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


@NEEDS_COMPILER
def test_all_loads_on_ours_and_the_ceiling(tmp_path: Path) -> None:
    found = measure(tmp_path / "json", "ours", "ceiling", *QUICK, "--connections", "8")
    expect_consistent(found, LOADS, [8], ["ours", "ceiling"])
    assert found["bases"] == ["ours"]
    ours, ceiling = found["servers"]
    assert len(ours["memory"]) >= 2  # a parent, and workers
    assert min(ours["memory"]) > 1 << 20
    assert len(ceiling["memory"]) == 1
    assert ours["complaints"] == []


@NEEDS_COMPILER
def test_a_thousand_clients(tmp_path: Path) -> None:
    arguments = ("--connections", "1000", "--loads", "mta,seed-churn", *QUICK)
    found = measure(tmp_path / "json", "ours", *arguments, "--rounds", "1", "--seconds", "0.3")
    assert [row["connections"] for row in found["loads"]] == [1000, 1000]
    assert all(one["requests"] > 0 for row in found["loads"] for one in row["rounds"])
    assert found["faults"] == []


@NEEDS_COMPILER
def test_versus_stock(tmp_path: Path) -> None:
    need_postfix()
    arguments = ("--loads", "mta-churn", "--connections", "1,64")
    found = measure(tmp_path / "json", "--vs-stock", *QUICK, *arguments)
    expect_consistent(found, ["mta-churn"], [1, 64], ["stock", "stock-tmpfs", "ours"])
    assert found["bases"] == ["stock", "stock-tmpfs"]
    assert [note["file_system"] == "tmpfs" for note in found["servers"][:2]] == [False, True]
    assert {name for row in found["loads"] for name in row["ratios"]} == {"stock", "stock-tmpfs"}


@NEEDS_COMPILER
def test_scenes(tmp_path: Path) -> None:
    arguments = ("--loads", "none", "--scenes", "stall,updates,kill", "--rounds", "1")
    found = measure(tmp_path / "json", "ours", *QUICK, *arguments)
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


@NEEDS_COMPILER
def test_stock_answers_no_client_while_others_stall(tmp_path: Path) -> None:
    need_postfix()
    arguments = ("--loads", "none", "--scenes", "stall,kill", "--rounds", "1")
    found = measure(tmp_path / "json", "stock-tmpfs", *QUICK, *arguments)
    [row] = found["scenes"]  # it has no worker to kill
    assert row["quiet"][0]["requests"] > 0
    assert row["disturbed"][0]["requests"] == 0
    assert row["disturbed"][0]["waiting"] == 64
    assert row["longest"] > 1e6
    assert row["p99_ratio"] is None


@NEEDS_COMPILER
def test_restarts_by_master(tmp_path: Path) -> None:
    need_postfix()
    arguments = ("--loads", "none", "--scenes", "reload,edit,crash", "--rounds", "1")
    found = measure(tmp_path / "json", "stock", "ours", *QUICK, *arguments)
    rows = {(row["scene"], row["server"]): row for row in found["scenes"]}
    assert set(rows) == set(itertools.product(("reload", "edit", "crash"), ("stock", "ours")))
    for row in rows.values():
        assert row["disturbed"][0]["requests"] > 0
        assert row["disturbed"][0]["wrong"] == 0
        assert row["longest"] > row["quiet"][0]["p50"]


@NEEDS_COMPILER
@pytest.mark.long
def test_a_restart_takes_hardly_longer_than_that_of_stock(tmp_path: Path) -> None:
    """The best of five rounds, as other processes take time from both."""
    need_postfix()
    arguments = (
        "--loads",
        "none",
        "--scenes",
        "reload,edit,crash",
        "--rounds",
        "5",
        "--seconds",
        "1",
        "--repeats",
        "0",
    )
    found = measure(tmp_path / "json", "stock", "ours", *arguments)
    best = {
        (row["scene"], row["server"]): min(one["longest"] for one in row["disturbed"])
        for row in found["scenes"]
    }
    assert best["reload", "ours"] < 3 * best["reload", "stock"]
    assert best["edit", "ours"] < 6 * best["edit", "stock"]
    assert best["crash", "ours"] < 6 * best["crash", "stock"]


@NEEDS_COMPILER
def test_growth(tmp_path: Path) -> None:
    arguments = ("--loads", "none", "--growth", "500,2000", "--rounds", "1")
    found = measure(tmp_path / "json", "ours", *QUICK, *arguments)
    assert [row["entries"] for row in found["growth"]] == [500, 2000]
    for row in found["growth"]:
        assert row["rounds"][0]["requests"] > 0
        assert row["file_bytes"] > 1200 * row["entries"]
        assert row["bytes_a_session_byte"] == row["file_bytes"] / (1200 * row["entries"])
        assert len(row["memory"]) >= 2
    assert found["faults"] == []


@NEEDS_COMPILER
@pytest.mark.long
def test_sweep(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "ours", "--loads", "none", "--scenes", "sweep", "--seconds", "1",
         "--json", str(tmp_path / "json")],
        env=environment(),
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0
    [row] = json.loads((tmp_path / "json").read_text())["scenes"]
    assert row["scene"] == "sweep"
    assert row["disturbed"][0]["requests"] > 0
    assert row["p99_ratio"] > 0


# Output.


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("connections", "title"),
    [("8", "server CPU, µs per request, 8 clients"), ("1,8", "seed: requests/s, by clients")],
)
def test_picture(tmp_path: Path, daemon: Daemon, connections: str, title: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib of the extra `plot` is not installed")
    picture = tmp_path / "figures.svg"
    arguments = ("--loads", "seed", "--connections", connections, "--scenes", "updates")
    done = run(daemon.socket_path, *QUICK, *arguments, "--growth", "100", "--plot", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    text = picture.read_text()
    assert "<svg" in text
    assert title in text  # as a comment beside the glyphs


@NEEDS_COMPILER
def test_a_running_server_and_three_generators(tmp_path: Path, daemon: Daemon) -> None:
    arguments = ("--loads", "mta", "--connections", "7", "--generators", "3")
    done = run(daemon.socket_path, *QUICK, *arguments, "--json", str(tmp_path / "json"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no terminal: no progress bar
    heading, rule, row = done.stdout.splitlines()[:3]
    assert heading.split()[:5] == ["load", "clients", "server", "CPU", "requests/s"]
    assert set(rule) == {"-", " "}
    assert row.split()[:3] == ["mta", "7", daemon.socket_path]
    assert "of the machine's CPU time" in done.stdout
    found = json.loads((tmp_path / "json").read_text())
    assert found["faults"] == []
    assert found["loads"][0]["rounds"][0]["requests"] > 0


# Options.


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_script(option: str) -> None:
    done = subprocess.run(
        [CHECKOUT / "scripts/tlsmgr-bench", option], capture_output=True, text=True, check=True
    )
    assert "tlsmgr-bench" in done.stdout
    assert option != "--version" or done.stdout == f"tlsmgr-bench {__version__}\n"


def test_the_default_servers() -> None:
    assert options.parse(["--vs-stock"]).servers == ["stock", "stock-tmpfs", "ours"]
    assert options.parse(["--vs-stock", "ceiling"]).servers[-1] == "ceiling"
    assert options.parse([]).servers == ["ours"]


def test_lists_of_names_and_numbers() -> None:
    read_names, read_numbers = options.names(["a", "b", "c"]), options.numbers([1, 2])
    assert [read_names(text) for text in ("c,a", "all", "none")] == [
        ["a", "c"],
        ["a", "b", "c"],
        [],
    ]
    assert [read_numbers(text) for text in ("64,1,64", "all", "none")] == [[1, 64], [1, 2], []]
    for read, text in ((read_names, "a,x"), (read_numbers, "0"), (read_numbers, "many")):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loads", "sed"], "sed: not one of seed,"),
        (["--connections", "0"], "not a number over 0: 0"),
        (["--rounds", "x"], "not a number over 0: x"),
        (["ours", "ours"], "named twice"),
        (["--json", "/nonexistent/file"], "cannot be written"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options.parse(arguments)
    assert message in capsys.readouterr().err


def test_wrong_usage_has_its_exit_status() -> None:
    assert run("--nonsense").returncode == 64


def test_help_names_everything() -> None:
    text = run("--help").stdout
    for name in (*LOADS, "stall", "sweep", "kill", "updates", "stock-tmpfs", "ceiling", *MAIL):
        assert f"  {name} " in text


# Failures.


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CC": "/nonexistent"}, "a C compiler is needed: cc, or the one that CC names"),
        ({"CC": "false"}, "cannot compile generator.c: exit status 1"),
    ],
)
def test_no_c_compiler_is_one_line(variables: dict[str, str], message: str) -> None:
    done = run("ours", *QUICK, **variables)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("tlsmgr-bench")
    assert message in line


@NEEDS_COMPILER
def test_a_server_that_does_not_start_is_fatal() -> None:
    done = run("ours", *QUICK, "-o", "tls_random_bytes=many")
    assert done.returncode == 1
    assert "scripts/tlsmgr-start does not start: " in done.stderr
    assert "Traceback" not in done.stderr


@NEEDS_COMPILER
def test_wrong_replies_make_figures_invalid(tmp_path: Path) -> None:
    with start_of("ceiling")(ServerSpec("ceiling", tmp_path, {})) as server:
        arguments = (server.socket, *QUICK, "--connections", "2", "--loads", "seed,lookup,update")
        found = measure(tmp_path / "json", *arguments, status=1)
    faults = sorted({fault.partition(": ")[0] for fault in found["faults"]})
    assert faults == [f"lookup 2 {server.socket}", f"seed 2 {server.socket}"]  # update is right
    assert all("wrong replies" in fault for fault in found["faults"])


@NEEDS_COMPILER
def test_sigterm_ends_everything_and_shows_the_results_so_far(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "ours", "--seconds", "60", "--loads", "seed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(TMPDIR=str(tmp_path)),
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
