"""own_descriptors - the descriptors of the process that runs the tests."""

from __future__ import annotations

import gc
import os


def own_descriptors() -> set[str]:
    """Return the open descriptors, after garbage of earlier tests was collected."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))
