"""options - the command line of scripts/tlsmgr-bench."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.figures import DISTURBED
from bench.loads import KEYS, LOADS
from bench.mail import MAIL, MESSAGES
from bench.restarts import RESTARTS
from bench.runs import SIZES
from bench.scenes import SCENES, SWEEP
from bench.servers import DISK, KINDS
from tlsmgr import __version__

CONNECTIONS = (1, 64, 1000)
VERSUS_STOCK = ("stock", "stock-tmpfs", "ours")
ALL_SCENES = {
    **{name: scene.purpose for name, scene in SCENES.items()},
    **{name: restart.purpose for name, restart in RESTARTS.items()},
    **SWEEP,
}

DESCRIPTION = """\
Measure tlsmgr servers side by side: the same loads on each of them, in turn, in
several rounds. Shows the CPU time that a request costs the server, requests per
second, latencies, and ratios to the first server, as medians over the rounds.
Needs a C compiler for the load generator.
"""

EPILOG = """\
servers (default: ours):
{kinds}
  DIR            another checkout of this project, by its scripts/tlsmgr-start
  SOCKET         a running server; not one in production, since the tool writes
                 to its cache

loads; each client has one request in flight:
{loads}

scenes: the seed load runs while
{scenes}

mail: smtp(8) delivers messages over TLS in a private Postfix with that server;
root only, and not for a SOCKET or ceiling
{mail}

examples:
  tlsmgr-bench --vs-stock
  tlsmgr-bench --vs-stock --json figures.json --plot figures.svg
  tlsmgr-bench ../before ours --loads mta --connections 64 --rounds 9
  tlsmgr-bench --vs-stock --loads none --mail all
  tlsmgr-bench --vs-stock --loads none --scenes stall,updates,kill --growth all
  tlsmgr-bench stock ours --loads none --scenes reload,edit,crash --rounds 9

exit status: 0; 1 if a measurement failed or a server gave wrong replies, with a
message; 64 for wrong usage.
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, named as in `_parser`. Raises SystemExit as argparse does."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.vs_stock:
        chosen.servers = [*VERSUS_STOCK, *chosen.servers]
    chosen.servers = chosen.servers or ["ours"]
    if len(set(chosen.servers)) < len(chosen.servers):
        parser.error("a server is named twice")
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tlsmgr-bench",
        description=DESCRIPTION,
        epilog=EPILOG.format(
            kinds=_lines({name: kind.purpose for name, kind in KINDS.items()}),
            loads=_lines({name: load.purpose for name, load in LOADS.items()}),
            scenes=_lines(ALL_SCENES),
            mail=_lines(MAIL),
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("servers", nargs="*", metavar="SERVER", help="server to measure; see below")
    add("--version", action="version", version=f"tlsmgr-bench {__version__}")
    add("--vs-stock", action="store_true",
        help="measure stock on disk, stock on tmpfs, and ours; needs root and Postfix")  # fmt: skip
    add("--loads", metavar="LIST", type=names(LOADS), default=list(LOADS),
        help="all (default), none, or names separated by commas")  # fmt: skip
    add("--connections", metavar="LIST", type=numbers(CONNECTIONS), default=list(CONNECTIONS),
        help="numbers of clients, separated by commas (default: 1,64,1000)")  # fmt: skip
    add("--scenes", metavar="LIST", type=names(ALL_SCENES), default=[],
        help="none (default), all, or names separated by commas")  # fmt: skip
    add("--mail", metavar="LIST", type=names(MAIL), default=[],
        help="none (default), all, or names separated by commas")  # fmt: skip
    add("--messages", metavar="N", type=_positive(int), default=MESSAGES,
        help=f"messages in a round of --mail (default: {MESSAGES})")  # fmt: skip
    add("--growth", metavar="LIST", type=numbers(SIZES), default=[],
        help="numbers of cache entries separated by commas, "
        f"all ({','.join(map(str, SIZES))}), or none (default)")  # fmt: skip
    add("--sessions", metavar="N", type=_positive(int), default=KEYS,
        help=f"sessions in each cache, but for --growth (default: {KEYS})")  # fmt: skip
    add("--seconds", metavar="S", type=_positive(float), default=2.0,
        help="duration of a load in a round (default: 2)")  # fmt: skip
    add("--rounds", metavar="N", type=_positive(int), default=5,
        help="number of rounds (default: 5)")  # fmt: skip
    add("--repeats", metavar="N", type=int, default=1,
        help="how often a run is repeated in which other processes use more than "
        f"{DISTURBED * 100:.0f}%% of the machine's CPU time (default: 1)")  # fmt: skip
    add("--generators", metavar="N", type=_positive(int), default=1,
        help="number of processes that share a load's clients (default: 1)")  # fmt: skip
    add("-o", dest="options", metavar="name=value", action="append", default=[],
        help="parameter for ours, as for tlsmgr-start; may be repeated")  # fmt: skip
    add("--disk", metavar="DIR", default=DISK,
        help="directory for caches, and for mail queues, that are to be on a disk "
        f"(default: {DISK})")  # fmt: skip
    add("--json", metavar="FILE", type=_new_file, help="write all figures to FILE")
    add("--plot", metavar="FILE.svg", type=_new_file,
        help="draw the figures, with matplotlib, which the script installs")  # fmt: skip
    return parser


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that reads a list of names, in the order of `known`."""
    all_names = list(known)

    def read(text: str) -> list[str]:
        if text in ("all", "none"):
            return all_names if text == "all" else []
        chosen = text.split(",")
        if unknown := set(chosen) - set(all_names):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: not one of {', '.join(all_names)}"
            )
        return [name for name in all_names if name in chosen]

    return read


def numbers(default: Sequence[int]) -> Callable[[str], list[int]]:
    """Return a function that reads a list of numbers, each 1 or more."""

    def read(text: str) -> list[int]:
        if text in ("all", "none"):
            return list(default) if text == "all" else []
        return sorted({int(_positive(int)(item)) for item in text.split(",")})

    return read


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            if (value := kind(text)) > 0:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"not a number over 0: {text}")

    return read


def _new_file(text: str) -> Path:
    """Check before the measurement that its results can be written there."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"cannot be written: {text}")
    return path


def _lines(entries: dict[str, str]) -> str:
    return "\n".join(f"  {name:<13}  {purpose}" for name, purpose in entries.items())
