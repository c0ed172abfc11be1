"""options - the command line of scripts/tlsmgr-bench"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.growth import SIZES
from bench.loads import LOADS
from bench.scenes import SCENES, SWEEP
from bench.servers import DISK, KINDS

CONNECTIONS = (1, 64, 1000)
VERSUS_STOCK = ("stock", "stock-tmpfs", "ours")
ALL_SCENES = {**{name: scene.purpose for name, scene in SCENES.items()}, **SWEEP}

DESCRIPTION = """\
Measure tlsmgr servers side by side: the same loads on each of them, in turn, in
several rounds. Shows requests a second, latencies, the CPU time that a request
costs the server, and ratios to the first server, as medians over the rounds.
"""

EPILOG = """\
servers (default: ours):
{kinds}
  DIR            another checkout of this project, by its scripts/tlsmgr-start
  SOCKET         a server that runs already; not one in service, since its cache
                 is written to

loads, each with so many clients that have one request in flight:
{loads}

scenes, in which the seed load runs while:
{scenes}

examples:
  tlsmgr-bench --vs-stock
  tlsmgr-bench --vs-stock --json figures.json --plot figures.svg
  tlsmgr-bench ../before ours --loads mta --connections 64 --rounds 9
  tlsmgr-bench --vs-stock --loads none --scenes stall,updates,kill --growth all

exit status: 0; 1 when something could not be measured, or a server gave wrong
replies, which is said; 64 for wrong usage.
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options: see `add_argument` below. SystemExit as from argparse."""
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
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("servers", nargs="*", metavar="SERVER", help="what to measure; see below")
    add("--vs-stock", action="store_true",
        help="measure stock on disk, stock on tmpfs, and ours; needs root and Postfix")  # fmt: skip
    add("--loads", metavar="LIST", type=names(LOADS), default=list(LOADS),
        help="all (default), none, or names with commas between")  # fmt: skip
    add("--connections", metavar="LIST", type=numbers(CONNECTIONS), default=list(CONNECTIONS),
        help="how many clients, with commas between (default: 1,64,1000)")  # fmt: skip
    add("--scenes", metavar="LIST", type=names(ALL_SCENES), default=[],
        help="none (default), all, or names with commas between")  # fmt: skip
    add("--growth", metavar="LIST", type=numbers(SIZES), default=[],
        help="numbers of entries with commas between, all for "
        f"{','.join(map(str, SIZES))}, or none (default)")  # fmt: skip
    add("--seconds", metavar="S", type=_positive(float), default=2.0,
        help="how long a load lasts in a round (default: 2)")  # fmt: skip
    add("--rounds", metavar="N", type=_positive(int), default=5,
        help="rounds (default: 5)")  # fmt: skip
    add("--generators", metavar="N", type=_positive(int), default=1,
        help="processes that share a load's clients (default: 1)")  # fmt: skip
    add("-o", dest="options", metavar="name=value", action="append", default=[],
        help="a parameter for ours, as for tlsmgr-start; may be repeated")  # fmt: skip
    add("--disk", metavar="DIR", default=DISK,
        help=f"where caches are kept that are to be on a disk (default: {DISK})")  # fmt: skip
    add("--json", metavar="FILE", type=_new_file, help="write all figures there")
    add("--plot", metavar="FILE.svg", type=_new_file,
        help="draw the figures; needs matplotlib, of the extra `bench`")  # fmt: skip
    return parser


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """What reads a list of names, in the order of `known`."""
    all_names = list(known)

    def read(text: str) -> list[str]:
        if text in ("all", "none"):
            return all_names if text == "all" else []
        wanted = text.split(",")
        if unknown := set(wanted) - set(all_names):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: not one of {', '.join(all_names)}"
            )
        return [name for name in all_names if name in wanted]

    return read


def numbers(default: Sequence[int]) -> Callable[[str], list[int]]:
    """What reads a list of numbers, each 1 or more."""

    def read(text: str) -> list[int]:
        if text in ("all", "none"):
            return list(default) if text == "all" else []
        return sorted({int(_positive(int)(word)) for word in text.split(",")})

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
    """A file that can be written when all is measured."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"cannot be written: {text}")
    return path


def _lines(entries: dict[str, str]) -> str:
    return "\n".join(f"  {name:<13}  {purpose}" for name, purpose in entries.items())
