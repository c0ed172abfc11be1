"""manual - the parameter table as a part of tlsmgr(8), in mdoc(7).

    python -m tlsmgr.config.manual                 prints that part
    python -m tlsmgr.config.manual man/tlsmgr.8    puts it in its place in the page

The place is between two marks, which are comments. So whoever adds a row to the table runs the
second command; a test fails as long as page and table differ. Run by developers, never by the
daemon.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tlsmgr.config.common import COMMON
from tlsmgr.config.parameters import MIB, OURS, TLSMGR
from tlsmgr.config.values import Kind, Parameter

BEGIN = '.\\" Begin: printed by "python -m tlsmgr.config.manual"; do not edit.\n'
END = '.\\" End of what is printed.\n'
WIDTH = 78

NAMES = frozenset(parameter.name for parameter in (*COMMON, *TLSMGR, *OURS))
MENTIONED = ("process_name", "process_id")  # usable in values, and no parameters of their own
WORKED_OUT = ("myhostname", "mydomain")  # defaults that depend on the machine

Rows = Sequence[Parameter]


def _rows(word: str) -> Rows:
    return [row for row in TLSMGR if word in row.name]


SECTIONS: tuple[tuple[str, str, Rows], ...] = (
    ("Session caches and ticket keys", "", [*_rows("session_cache"), *_rows("loglevel")]),
    ("Random number generator", "", _rows("tls_random")),
    (
        "Parameters of our own",
        "These are read from\n.Pa tlsmgr.cf ,\nand ignored with a warning in\n.Pa main.cf ;\n"
        "Postfix's tlsmgr has nothing like them.\nSee\n.Xr tlsmgr.cf 5 .\n",
        OURS,
    ),
    ("Parameters common to all Postfix programs", "", COMMON),
)
"""Heading, introduction, and rows of each subsection."""


def parameters() -> str:
    """All subsections."""
    return "".join(
        f".Ss {heading}\n{introduction}.Bl -tag -width Ds\n{''.join(map(item, rows))}.El\n"
        for heading, introduction, rows in SECTIONS
    )


def item(row: Parameter) -> str:
    """One parameter: name, default, what it is for, and what values it takes."""
    text = f"{row.purpose} {_values(row)}".strip()
    sentences = re.split(r"(?<=[.;]) (?=[A-Z0-9])", text)
    lines = [line for sentence in sentences for line in _lines(sentence)]
    return f".It Va {row.name} Pq {_default(row)}\n" + "".join(f"{line}\n" for line in lines)


def _default(row: Parameter) -> str:
    """The default as the argument of a macro."""
    if row.name in WORKED_OUT:
        return '"worked out at start"'
    return f'"{row.default}"' if " " in row.default else row.default or "empty"


def _values(row: Parameter) -> str:
    """Type, unit and bounds, as a sentence; of a text there is nothing to say."""
    words = {
        Kind.TEXT: "",
        Kind.FLAG: "Yes or no.",
        Kind.NUMBER: f"A number{_bounds(row, '')}.",
        Kind.TIME: f"A time{_bounds(row, ' s')}.",
        Kind.BYTES: f"A size{_bounds(row, ' bytes')}",
    }
    if row.kind is Kind.BYTES:
        return f"{words[row.kind]}; the default is {int(row.default) // MIB} MiB."
    return words[row.kind]


def _bounds(row: Parameter, unit: str) -> str:
    if row.maximum is not None:
        return f" from {row.minimum} to {row.maximum}{unit}"
    return f" of at least {row.minimum}{unit}" if row.minimum else ""


def _lines(sentence: str) -> Iterator[str]:
    """A sentence as lines of mdoc: parameters and manual pages get a macro, each on its line."""
    plain: list[str] = []
    for word in sentence.split():
        macro = _macro(word)
        if macro is None:
            plain.append(word)
            continue
        yield from _fill(plain)
        yield macro
        plain = []
    yield from _fill(plain)


def _fill(words: list[str]) -> list[str]:
    return textwrap.wrap(" ".join(words), WIDTH, break_on_hyphens=False, break_long_words=False)


def _macro(word: str) -> str | None:
    """The macro line for a word that is the name of a parameter or of a manual page, or None."""
    page = re.fullmatch(r"(\w+)\((\d)\)(.*)", word)  # not syslog.conf(5), which few have
    if page:
        return f".Xr {page[1]} {page[2]}{_after(page[3])}"
    name = re.fullmatch(r"(\$?\w+)(.*)", word)
    if name and (name[1] in NAMES or name[1].lstrip("$") in MENTIONED):
        return f".Va {name[1]}{_after(name[2])}"
    return None


def _after(rest: str) -> str:
    """What follows the name without a blank: punctuation, or the ending of a word."""
    if not rest:
        return ""
    return f" {rest}" if rest in ".,;:)" else f" Ns {rest}"


def refreshed(page: str) -> str:
    """The page with the part between the marks as it should be. ValueError: there are no marks."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no marks for the parameters")
    return head + begin + parameters() + end + tail


def main(arguments: Sequence[str]) -> int:
    """Print the part, or refresh the pages that are named."""
    if not arguments:
        print(parameters(), end="")
    for name in arguments:
        path = Path(name)
        path.write_text(refreshed(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
