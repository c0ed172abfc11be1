"""sweep - the scene that takes minutes: a cache of 200,000 sessions is swept, half of it expires

Sessions live 120 seconds, the shortest that a tlsmgr accepts, and it sweeps at the start and every
120 seconds from then on (Postfix tlsmgr.c). So of what is stored within the first two minutes all
has expired at 240 seconds, and nothing of what is stored later. One server after the other is
started for this, filled twice, and watched from the moment of its third sweep.

A server that is too slow to be filled in time is left out by name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.bench import Bench
from bench.scenes import SceneRow, seeds
from bench.server import Server
from bench.servers import ServerSpec, started
from tlsmgr.log import Fatal, warning

HALF = 100_000
LIFE = 120.0  # seconds
MARGIN = 3.0  # seconds: clocks of whole seconds, and the time that a start takes
LENGTH = 8.0  # seconds to watch; the sweep takes longer
PARAMETERS = {"smtp_tls_session_cache_timeout": f"{LIFE:.0f}s"}
OUR_PARAMETERS = ("smtp_tls_session_cache_size_limit=2147483648",)


def run_sweep(bench: Bench, names: Sequence[str], wish: ServerSpec) -> Iterator[SceneRow]:
    """The scene for each of these kinds of servers."""
    for name in names:
        options = (*OUR_PARAMETERS, *wish.options)
        with started([name], replace(wish, parameters=PARAMETERS, options=options)) as [server]:
            try:
                yield _watch_sweep(bench, server, time.monotonic())
            except Fatal as error:
                warning(f"no sweep scene: {error.text}")


def _watch_sweep(bench: Bench, server: Server, start: float) -> SceneRow:
    bench.tick(f"sweep {server.name}, 4 minutes")
    bench.fill(server, range(HALF), LIFE - 2 * MARGIN)
    _sleep_until(start + LIFE + MARGIN)
    bench.fill(server, range(HALF, 2 * HALF), LIFE - 3 * MARGIN - bench.seconds)
    quiet = seeds(bench, server, bench.seconds)
    _sleep_until(start + 2 * LIFE)
    return SceneRow("sweep", server.name, [quiet], [seeds(bench, server, LENGTH)])


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
