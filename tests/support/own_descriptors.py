"""The descriptors of the process that runs the tests."""

from __future__ import annotations

import gc
import os


def own_descriptors() -> set[str]:
    """Those that are open, without what earlier tests have left to the garbage collector."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))
