"""check - tlsmgrctl check: what does not fit in the configuration, and how to mend it

Reads main.cf, master.cf and tlsmgr.cf, and asks the running daemon. Changes nothing. For root: only
root can read all of it. Exit status: 0 without findings, 1 with one or more.
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
import time
from collections.abc import Iterator

from tlsmgr.ctl.check_facts import Facts, gather
from tlsmgr.ctl.check_table import CHECKS, Finding
from tlsmgr.ctl.instance import Instance, add_options, any_postfix, find

SUMMARY = "what is wrong in the configuration, why, and the command that mends it"
DESCRIPTION = """\
Look for mistakes in main.cf, master.cf and tlsmgr.cf, in the files that they
name, and in what the running daemon says. Each finding says what is wrong, why
it matters, and the command that mends it; nothing is changed. Run it as root.
"""
WIDTH = 79  # characters of a line; commands are never broken
DAY = 86400  # seconds
EXIT_OK, EXIT_FAILED = 0, 1
_WRAP_WHAT = textwrap.TextWrapper(
    WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
)
_WRAP_WHY = textwrap.TextWrapper(WIDTH, initial_indent="    ", subsequent_indent="    ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tlsmgrctl check`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "checks:\n" + "\n".join(f"  {c.name:<20} {c.summary}" for c in CHECKS)
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run `tlsmgrctl check`; return the exit status. Raises TlsmgrError."""
    facts = gather(_instance(arguments), int(time.time()) // DAY)
    findings = list(examine(facts))
    if arguments.json:
        print(json.dumps(json_object(facts.instance, findings), indent=1))
    else:
        print("\n".join(lines(facts.instance, findings)))
    return EXIT_FAILED if findings else EXIT_OK


def _instance(arguments: argparse.Namespace) -> Instance:
    """Return what to look at: before a tlsmgr-start that does not run, a Postfix without ours."""
    instance = find(os.environ, arguments.directory)
    if arguments.socket:
        return instance._replace(socket=arguments.socket)
    if not instance.is_postfix and not instance.directory and not os.path.exists(instance.socket):
        return any_postfix(os.environ) or instance
    return instance


def examine(facts: Facts) -> Iterator[tuple[str, Finding]]:
    """Yield the findings of all checks, each with the name of its check."""
    for check in CHECKS:
        for finding in check.find(facts):
            yield check.name, finding


def lines(instance: Instance, findings: list[tuple[str, Finding]]) -> list[str]:
    """Return the findings as lines for a person."""
    shown = []
    for name, finding in findings:
        shown += [
            *_WRAP_WHAT.wrap(f"{name}: {finding.what}"),
            *_WRAP_WHY.wrap(finding.why),
            f"    # {finding.command}",
            "",
        ]
    total = {0: "nothing", 1: "1 thing"}.get(len(findings), f"{len(findings)} things")
    return [*shown, f"{_name(instance)}: {len(CHECKS)} checks, {total} to mend"]


def json_object(instance: Instance, findings: list[tuple[str, Finding]]) -> dict[str, object]:
    """Return the findings as the object that --json prints, which is a contract."""
    return {
        "config_directory": instance.directory,
        "socket": instance.socket,
        "checks": [check.name for check in CHECKS],
        "findings": [{"check": name, **finding._asdict()} for name, finding in findings],
    }


def _name(instance: Instance) -> str:
    return instance.directory or f"tlsmgr-start at {instance.socket}"
