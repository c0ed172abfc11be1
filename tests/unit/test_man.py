"""The manual pages: clean mdoc, and in step with the tables and parsers that they describe."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from support.checkout import CHECKOUT
from support.settled_files import write_settled

from tlsmgr import standalone
from tlsmgr.config.load import load
from tlsmgr.config.parameters import OURS, PARAMETERS
from tlsmgr.ctl.check_table import CHECKS
from tlsmgr.ctl.main import COMMANDS as CTL_COMMANDS
from tlsmgr.ctl.main import command_line as ctl_parser
from tlsmgr.ctl.requests import ARGUMENTS, REQUESTS
from tlsmgr.install.__main__ import COMMANDS
from tlsmgr.install.__main__ import options as switching_options
from tlsmgr.processes.master import _GETOPT as DAEMON_OPTIONS

MAN = CHECKOUT / "man"
PAGES = sorted(path.name for path in MAN.iterdir() if re.search(r"\.[1-9]$", path.name))


def _gen_man() -> ModuleType:
    """The script as a module."""
    loader = SourceFileLoader("gen_man", str(CHECKOUT / "scripts" / "gen-man"))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


manual = _gen_man()
REFRESH = ".venv/bin/python scripts/gen-man man/tlsmgr.8"
HEADINGS = {
    "NAME", "SYNOPSIS", "DESCRIPTION", "SIGNALS", "SECURITY", "CONFIGURATION PARAMETERS",
    "ENVIRONMENT", "FILES", "EXIT STATUS", "DIAGNOSTICS", "DIFFERENCES FROM STOCK", "SEE ALSO",
    "LICENSE", "HISTORY", "AUTHORS", "BUGS",
}  # fmt: skip

Option = tuple[str, str | None]
"""An option as on the command line, and what stands for its value."""


def text(page: str) -> str:
    """The source of a page."""
    return (MAN / page).read_text()


def items(page: str) -> list[str]:
    """The heads of all its lists' items."""
    return re.findall(r"^\.It (.*)$", text(page), re.MULTILINE)


def documented_options(page: str) -> list[Option]:
    """The options in a page's lists, in order."""
    heads = [head for item in items(page) if item.startswith("Fl ") for head in item.split(" , ")]
    found = []
    for head in heads:
        name, _, value = head.removeprefix("Fl ").partition(" Ar ")
        found.append((f"-{name}", value.replace(" Ns = Ns Ar ", "=") or None))
    return found


def real_options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    """The options of a parser."""
    for action in parser._actions:
        for name in action.option_strings:
            yield name, None if action.nargs == 0 else str(action.metavar)


def test_the_pages_are_these() -> None:
    assert PAGES == [
        "tlsmgr-farm.7",
        "tlsmgr-postfix.8",
        "tlsmgr-start.8",
        "tlsmgr.8",
        "tlsmgr.cf.5",
        "tlsmgrctl.1",
    ]


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is missing")
@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_nothing_to_say(page: str) -> None:
    # Run beside the pages, it finds those that they refer to; others need not be installed here.
    lint = subprocess.run(["mandoc", "-T", "lint", page], cwd=MAN, capture_output=True, text=True)
    lines = [
        line
        for line in lint.stdout.splitlines()
        if not re.search("referenced manual not found: Xr (?!tlsmgr)", line)
    ]
    assert lines == []


@pytest.mark.parametrize("page", PAGES)
def test_no_word_comes_twice_in_a_row(page: str) -> None:
    prose = re.sub(r"^\.Bd -literal.*?^\.Ed$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    plain = re.sub(r"^\.(\\\".*|[A-Z][a-z] )", "", prose, flags=re.MULTILINE)
    words = re.findall(r"\w+|[^\w\s]", plain)
    assert [b for a, b in pairwise(words) if len(b) > 1 and a.lower() == b] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_named_like_its_file(page: str) -> None:
    name, _, section = page.rpartition(".")
    assert f"\n.Dt {name.upper()} {section}\n" in text(page)
    assert f"\n.Nm {name}\n" in text(page)


def test_tlsmgr_has_the_headings_of_a_postfix_daemon_page() -> None:
    found = re.findall(r"^\.Sh (.*)$", text("tlsmgr.8"), re.MULTILINE)
    assert HEADINGS - set(found) == set()


def test_tlsmgr_has_the_parameter_table() -> None:
    page = text("tlsmgr.8")
    assert page == manual.refreshed(page), f"the parameters have changed; run: {REFRESH}"


def test_every_parameter_is_printed_once() -> None:
    names = re.findall(r"^\.It Va (\S+) Pq ", manual.parameters(), re.MULTILINE)
    assert sorted(names) == sorted(row.name for row in PARAMETERS)


def test_printing_makes_references_of_names_and_pages() -> None:
    printed = manual.parameters()
    assert "\n.Va mail_owner .\n" in printed
    assert "\n.Xr postlogd 8 ,\n" in printed
    assert manual._macro("postlogd(8)'s") == ".Xr postlogd 8 Ns 's"
    assert "\n.It Va tls_random_bytes Pq 32\n" in printed
    assert '\n.It Va maillog_file_prefixes Pq "/var, /dev/stdout"\n' in printed


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no marks"):
        manual.refreshed(".Sh NAME\n")


def test_tlsmgr_lists_the_generic_options() -> None:
    letters = DAEMON_OPTIONS.replace(":", "")
    assert sorted(name for name, _ in documented_options("tlsmgr.8")) == sorted(
        f"-{letter}" for letter in letters
    )
    for name, value in documented_options("tlsmgr.8"):
        assert (value is not None) == (f"{name[1]}:" in DAEMON_OPTIONS), name


def test_tlsmgr_cf_lists_our_parameters_with_their_defaults() -> None:
    listed = re.findall(r"^\.It Va (\S+) Pq (.*)$", text("tlsmgr.cf.5"), re.MULTILINE)
    defaults = [(name, default.strip('"')) for name, default in listed]
    assert sorted(defaults) == sorted((row.name, row.default or "empty") for row in OURS)


def test_tlsmgr_cf_examples_are_valid(tmp_path: Path) -> None:
    examples = re.findall(
        r"^# /etc/postfix/tlsmgr.cf\n(.*?)^\.Ed$", text("tlsmgr.cf.5"), re.M | re.S
    )
    assert len(examples) > 1
    for example in examples:
        write_settled(tmp_path / "tlsmgr.cf", example)
        conf = load(str(tmp_path), pytest.fail, pytest.fail, optional=True)
        assert conf.number("tlsmgr_worker_processes") in (1, 4)


def test_tlsmgr_start_lists_its_options() -> None:
    assert sorted(documented_options("tlsmgr-start.8")) == sorted(
        real_options(standalone.options())
    )


def test_tlsmgr_postfix_lists_its_options_and_commands() -> None:
    page = "tlsmgr-postfix.8"
    assert sorted(documented_options(page)) == sorted(real_options(switching_options()))
    commands = [item.removeprefix("Cm ") for item in items(page) if item.startswith("Cm ")]
    assert commands == list(COMMANDS)


def test_tlsmgrctl_lists_its_options() -> None:
    parser = ctl_parser()
    (requests,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    options = {option for p in (parser, *requests.choices.values()) for option in real_options(p)}
    assert sorted(documented_options("tlsmgrctl.1")) == sorted(options)


def test_tlsmgrctl_lists_its_checks() -> None:
    summaries = [f"{c.name}\n{c.summary[0].upper()}{c.summary[1:]}.\n" for c in CHECKS]
    assert "".join(f".It {summary}" for summary in summaries) in text("tlsmgrctl.1")


@pytest.mark.parametrize("name", REQUESTS)
def test_tlsmgrctl_lists_its_requests(name: str) -> None:
    (item,) = [item for item in items("tlsmgrctl.1") if item.split()[:2] == ["Cm", name]]
    request = REQUESTS[name]
    assert ("Fl -raw" in item) == request.binary
    assert [word for word in item.split() if word in ARGUMENTS] == [*request.arguments]
    optional = any(ARGUMENTS[argument].optional for argument in request.arguments)
    assert ("Op Ar" in item) == optional


def test_tlsmgrctl_has_all_requests() -> None:
    listed = [item.split()[1] for item in items("tlsmgrctl.1") if item.startswith("Cm ")]
    assert sorted(name for name in listed if name not in CTL_COMMANDS) == sorted(REQUESTS)
