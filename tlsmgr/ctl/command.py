"""command - what a command of tlsmgrctl is: a row of the table in main.

A command's file has one or more functions that take the client and the parsed arguments, ask the
server, and return the result. Text is returned as lines, by functions that print nothing, so that
tests and other views can use them; main prints it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

from tlsmgr.client import Client, TlsmgrError

Result = bytes | list[str]
"""Binary data, printed in base64 or as it is; or lines of text, which may be none."""


class NotFound(TlsmgrError):
    """The server answered that there is no such session or key."""


@dataclass(frozen=True)
class Command:
    """One row: the function, its arguments by name, and the help text."""

    run: Callable[[Client, Namespace], Result]
    summary: str
    arguments: tuple[str, ...] = ()
    binary: bool = False  # it has --raw
    notes: str = ""


@dataclass(frozen=True)
class Argument:
    """A positional argument, as argparse has it; ``type`` reads the text."""

    help: str
    type: Callable[[str], object] = str
    optional: bool = False
    default: object = None
