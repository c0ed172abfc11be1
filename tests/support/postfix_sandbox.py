"""postfix_sandbox - what private Postfix systems have in common; the measuring tool has it, too"""

from __future__ import annotations

from bench.sandbox import (
    ENVIRONMENT,
    MAIN_CF,
    STOP_LIMIT,
    PostfixSandbox,
    postconf,
    postfix_missing,
    wait_until,
)

__all__ = [
    "ENVIRONMENT",
    "MAIN_CF",
    "STOP_LIMIT",
    "PostfixSandbox",
    "postconf",
    "postfix_missing",
    "wait_until",
]
