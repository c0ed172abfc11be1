"""main - scripts/tlsmgr-bench, from the command line to the exit status.

Exit status: 0; 1 if a measurement failed, with one line that says why, or if a server gave wrong
replies; 64 for wrong usage; 130 after ctrl-C or SIGTERM. The results up to then are always shown.
All files are in temporary directories, which are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import options
from bench.drive import NO_COMPILER, build, compiler
from bench.mail import check, mail_rows, run_mail
from bench.plot import matplotlib_missing, plot
from bench.report import Progress, report
from bench.restarts import RESTARTS, run_restarts
from bench.results import Results
from bench.runs import Bench, fill_all, load_rows, run_growth, run_loads
from bench.scenes import SCENES, SWEEP, run_scenes, run_sweep, scene_rows
from bench.servers import Server, ServerSpec, started
from tlsmgr import log
from tlsmgr.log import Fatal

USAGE_ERROR = 64  # sysexits(3), EX_USAGE
INTERRUPTED = 130  # as after SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show the results, and return the exit status."""
    log.use(log.Stderr(), "tlsmgr-bench")
    try:
        chosen = options.parse(arguments)
    except SystemExit as end:
        return USAGE_ERROR if end.code else 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return _measure_and_show(chosen)
    except Fatal as error:
        log.fatal(error.text)
        return 1


def _measure_and_show(chosen: argparse.Namespace) -> int:
    if chosen.plot and (reason := matplotlib_missing()):
        raise Fatal(f"--plot: {reason}")
    if compiler() is None:
        raise Fatal(NO_COMPILER)
    if chosen.mail:
        check(chosen.servers)
    results = Results(_bases(chosen), _settings(chosen))
    status = 0
    try:
        _measure(chosen, results)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Fatal as error:
        log.fatal(error.text)
        status = 1
    _show(chosen, results)
    return status or int(bool(results.faults()))


def _bases(chosen: argparse.Namespace) -> list[str]:
    """Return the servers that the others are compared with."""
    if chosen.vs_stock:
        return list(options.VERSUS_STOCK[:2])
    return list(chosen.servers[:1]) if len(chosen.servers) > 1 else []


def _settings(chosen: argparse.Namespace) -> dict[str, object]:
    hidden = ("json", "plot")
    return {name: value for name, value in vars(chosen).items() if name not in hidden}


def _measure(chosen: argparse.Namespace, results: Results) -> None:
    """Measure everything that was chosen, in the order of the report."""
    _raise_descriptor_limit()
    with (
        tempfile.TemporaryDirectory(prefix="tlsmgr-bench-") as scratch,
        Progress(_runs(chosen)) as progress,
    ):
        directory = Path(scratch)
        spec = ServerSpec("", directory, {}, chosen.options, chosen.disk)
        bench = _bench(chosen, directory, progress.tick)
        if chosen.loads or set(chosen.scenes) & SCENES.keys():
            with started(chosen.servers, spec) as servers:
                _measure_together(chosen, results, bench, servers)
        if chosen.mail:
            results.mail = mail_rows(chosen.servers, chosen.mail)
            for server in run_mail(bench, results.mail, spec, chosen.messages):
                results.note([server])
        if chosen.growth:
            results.growth.extend(run_growth(bench, chosen.servers, spec, chosen.growth))
        if restarts := [name for name in chosen.scenes if name in RESTARTS]:
            results.scenes.extend(run_restarts(bench, chosen.servers, restarts, spec))
        if set(chosen.scenes) & SWEEP.keys():
            results.scenes.extend(run_sweep(bench, chosen.servers, spec))


def _measure_together(
    chosen: argparse.Namespace, results: Results, bench: Bench, servers: Sequence[Server]
) -> None:
    """Run the loads, and the scenes that need no server of their own."""
    fill_all(bench, servers)
    results.loads = load_rows(chosen.servers, chosen.loads, chosen.connections)
    results.scenes = scene_rows(servers, [name for name in chosen.scenes if name in SCENES])
    try:
        run_loads(bench, servers, results.loads)
        run_scenes(bench, servers, results.scenes)
    finally:
        results.note(servers)


def _bench(chosen: argparse.Namespace, directory: Path, tick: Callable[[str], None]) -> Bench:
    return Bench(
        directory=directory,
        generator=build("generator", directory),
        seconds=chosen.seconds,
        rounds=chosen.rounds,
        processes=chosen.generators,
        repeats=chosen.repeats,
        keys=range(chosen.sessions),
        tick=tick,
    )


def _runs(chosen: argparse.Namespace) -> int:
    """Return about how many runs there will be, for the progress bar."""
    each = chosen.rounds * (len(chosen.loads) * len(chosen.connections) + len(chosen.scenes))
    each += len(chosen.mail) * (chosen.rounds + 1)
    each += len(chosen.growth) * (chosen.rounds + 1) + 1
    return int(each * len(chosen.servers))


def _raise_descriptor_limit() -> None:
    """Raise it for the clients and for all servers started from here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _show(chosen: argparse.Namespace, results: Results) -> None:
    if text := report(results):
        print(text, flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(results.tree(), indent=1) + "\n")
    if chosen.plot:
        plot(results, chosen.plot)


if __name__ == "__main__":
    sys.exit(main())
