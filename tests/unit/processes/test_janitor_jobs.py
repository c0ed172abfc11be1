"""The janitor's jobs, without its loop: what they note for the status, and when they wait."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.parent_parts import inherited_for

from tlsmgr.prng.exchange import ExchangeFile
from tlsmgr.prng.reseed import Reseeder
from tlsmgr.processes.janitor import BLOCKED_PAUSE, Duties, Janitor, Located, make_links
from tlsmgr.processes.scoreboard import GeneratorFacts

SLOT = 3


class Bench:
    """A janitor with an entropy source and an exchange file; ``owned``: when it was mail_owner."""

    def __init__(self, directory: Path) -> None:
        self.source = directory / "entropy"
        self.source.write_bytes(os.urandom(32))
        self.place = directory / "place"
        self.place.mkdir()
        self.inherited = inherited_for(1)
        self.inherited.pool.attach(SLOT)
        self.scoreboard = self.inherited.scoreboard
        self.owned: list[str] = []
        reseeder = Reseeder(f"dev:{self.source}", 32, 3600, self.inherited.pool)
        reseeder.open(0.0)
        duties = Duties(
            locate=lambda: Located(None, (None,)),
            enter_jail=lambda: None,
            as_owner=self.as_owner,
            exchange_file=lambda _: ExchangeFile(
                f"{self.place}/prng_exch", 3600, self.inherited.pool
            ),
            store_files=lambda located: [None],
            reseeder=reseeder,
            damage_alarm=-1,
        )
        self.links = make_links()
        located = Located(None, (None,))
        self.janitor = Janitor(self.inherited, SLOT, self.links[1], duties, located)

    @contextlib.contextmanager
    def as_owner(self) -> Iterator[None]:
        self.owned.append("in")
        yield
        self.owned.append("out")

    @property
    def facts(self) -> GeneratorFacts:
        return self.scoreboard.generator()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for link in made.links:
        link.close()


def test_readings_of_the_source_are_noted(bench: Bench) -> None:
    """Their number and the time of the last one, and whether the latest try failed."""
    before = time.monotonic()
    bench.janitor._reseed(0.0)
    first = bench.facts
    assert (first.reseeds, first.source_fails) == (1, False)
    assert before <= first.reseeded <= time.monotonic()
    bench.janitor._reseed(0.0)  # the file has ended
    assert bench.facts == first._replace(source_fails=True)
    bench.source.write_bytes(os.urandom(32))
    bench.janitor._reseed(0.0)
    assert (bench.facts.reseeds, bench.facts.source_fails) == (2, False)
    assert bench.facts.reseeded > first.reseeded


def test_updates_of_the_exchange_file_are_noted(bench: Bench) -> None:
    before = time.monotonic()
    bench.janitor._update_exchange_file(0.0)
    first = bench.facts
    assert not first.exchange_fails
    assert before <= first.saved <= time.monotonic()
    shutil.rmtree(bench.place)
    bench.janitor._update_exchange_file(0.0)
    assert bench.facts == first._replace(exchange_fails=True)
    bench.place.mkdir()
    bench.janitor._update_exchange_file(0.0)
    assert not bench.facts.exchange_fails
    assert bench.facts.saved > first.saved


def test_each_leaves_alone_what_the_other_has_noted(bench: Bench) -> None:
    bench.janitor._reseed(0.0)
    bench.janitor._update_exchange_file(0.0)
    bench.janitor._reseed(0.0)
    facts = bench.facts
    assert (facts.reseeds, facts.source_fails, facts.exchange_fails) == (1, True, False)
    assert 0 < facts.reseeded <= facts.saved


def test_no_job_on_disk_while_a_file_system_blocks(bench: Bench) -> None:
    """Else it runs as mail_owner."""
    runs: list[float] = []

    def run(now: float) -> float:
        assert bench.owned == ["in"]
        runs.append(now)
        return 7.0

    job = bench.janitor._on_disk(run)
    bench.scoreboard.files_blocked[0] = 1
    assert (job(5.0), runs) == (BLOCKED_PAUSE, [])
    bench.scoreboard.files_blocked[0] = 0
    assert (job(6.0), runs) == (7.0, [6.0])
    assert bench.owned == ["in", "out"]


def test_what_touches_no_session_file_says_so(bench: Bench) -> None:
    """So that sessions are cached on when it blocks; after an error as well."""

    def run(now: float) -> float:
        assert bench.scoreboard.is_away(SLOT)
        return 1 / now

    job = bench.janitor._elsewhere(run)
    assert job(4.0) == 0.25
    assert not bench.scoreboard.is_away(SLOT)
    with pytest.raises(ZeroDivisionError):
        job(0.0)
    assert not bench.scoreboard.is_away(SLOT)


def test_a_parent_that_is_gone_hears_of_no_new_file(bench: Bench) -> None:
    """The loop sees its end next; a defect it is not."""
    parent, _ = bench.links
    bench.janitor._report_renewed()
    assert parent.receive(0.0) is not None
    parent.close()
    bench.janitor._report_renewed()
