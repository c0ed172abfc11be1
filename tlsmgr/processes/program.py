"""program - how this program was started, for a run of it in a child or in place of this process.

Imported early in a reload, so it imports next to nothing. Pure.
"""

from __future__ import annotations

from typing import NamedTuple


class Program(NamedTuple):
    """How to run this program again.

    ``arguments`` are those of execv(2), the interpreter first; of them ``program_words`` come
    before the options. ``facts`` is what a trial prints if nothing changed that needs a restart.
    """

    arguments: tuple[str, ...]
    program_words: int
    directory: str
    umask: int
    facts: str = ""

    @property
    def check(self) -> tuple[str, ...]:
        """Return the arguments of a trial."""
        at = self.program_words
        return (*self.arguments[:at], "--check", *self.arguments[at:])
