"""names - the name of a process, for ps(1) and top(1). Nothing here can fail."""

from __future__ import annotations

import contextlib
import ctypes

PR_SET_NAME = 15  # prctl(2)


def name_process(name: str) -> None:
    """Set the name that ps(1) and top(1) show, 15 bytes at most."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
