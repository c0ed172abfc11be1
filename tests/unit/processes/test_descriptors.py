"""The descriptors that a child closes after the fork: all but those that it needs."""

from __future__ import annotations

import contextlib
import os
import resource

import pytest
from support.cache_files import in_child

from tlsmgr.processes.setup import close_all_but

NEIGHBOURS, ALONE = (60, 61, 62), 64
UNWANTED = (63, 66)


def is_open(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


@pytest.mark.parametrize("limit", [1024, 9])
def test_those_that_are_kept_stay_open_whatever_the_limit(limit: int) -> None:
    """A limit that was lowered may be below descriptors that are open, and neighbours are kept."""

    def work() -> list[int]:
        for descriptor in (*NEIGHBOURS, ALONE, *UNWANTED):
            os.dup2(1, descriptor)
        before = [d for d in range(3, 100) if is_open(d)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 1024))
        close_all_but(set(before) - set(UNWANTED))
        return [d for d in before if not is_open(d)]

    assert in_child(work) == list(UNWANTED)


def test_the_first_three_stay_and_the_next_one_goes() -> None:
    """Log lines and tracebacks may go to standard error, whoever closes the rest."""

    def work() -> list[int]:
        others = [d for d in range(4, 100) if is_open(d)]
        if is_open(3):  # the result's way home is among the others
            others.append(os.dup(3))
        os.dup2(1, 3)
        close_all_but(others)
        return [d for d in range(4) if is_open(d)]

    assert in_child(work) == [0, 1, 2]
