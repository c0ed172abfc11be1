"""DIAGNOSTICS of the pages: each log message of our own has an entry, and each entry a message."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

from tlsmgr.install.launcher import BODY

PACKAGE = CHECKOUT / "tlsmgr"
MAN = CHECKOUT / "man"

ELSEWHERE = {"ctl", "install", "client"}  # programs that log nothing
BY_HAND = {"pidfile.py", "reexec.py", "socketfile.py", "standalone.py", "systemd.py", "trial.py"}
"""Files of a start by hand alone."""

LOGGING = frozenset(
    [
        "info",
        "warning",
        "error",
        "fatal",
        "panic",
        "warn",
        "over",
        "Fatal",
        "CannotServe",
        "_warn",
        "_report",
        "StoreError",
        "StoreFull",
        "StoreBusy",
        "ExchangeError",
        "EntropyError",
        "SourceError",
        "SharedMemoryError",
        "SelfTestError",
        "BadSecret",
        "BadTable",
        "BadUrl",
        "_Unusable",
    ]
)
"""Functions and exceptions whose arguments are log messages, or the reasons in them."""

MAKERS = {
    "logsockets.py": {"_report", "_send"},
    "parent.py": {"_describe_end"},
    "shm.py": {"_note_fallback"},
    "health.py": {"_repeated", "_stuck", "_unbalanced"},
}
"""Functions that return a message or keep it for later, by file."""

STOCK = frozenset(
    {
        # mail_conf*.c, mail_params.c, dict.c, mac_expand.c: mistakes in main.cf
        "/main.cf:",
        '" option value:',
        "' does not match any prefix in maillog_file_prefixes",
        ": bad time value or unit:",
        ': logical line must not start with whitespace: "',
        ": overriding earlier entry:",
        ": text after null byte may be ignored",
        ": unrecognized value:",
        "bad boolean configuration:",
        "bad numerical configuration:",
        "bad string length",
        "dictionary mail_dict: macro processing error",
        "mac_exp_eval: bad conversion:",
        "parameter value",
        "redirecting the request to",
        "request to update",
        # multi_server.c, master_proto.h: the command line
        "bad generation:",
        'chdir("',
        "do not run this command by hand",
        "invalid option:",
        "invalid socket_count:",
        "no debugger_command variable set up",
        "no transport type specified",
        "requires a process limit of 1",
        "unexpected command-line argument:",
        "unsupported transport type:",
        # tls_scache.c, tlsmgr.c: events in a cache
        "session id=",
        "tlsmgr_cache_run_event: start TLS",
    }
)
"""Messages that Postfix's own programs have too, and that need no entry."""

NEVER_LOGGED = frozenset(
    {
        "bad size:",  # load and tlsmgr_cf have texts of their own for it
        "bad time:",  # and for a short time
        "log line was",  # the singular of an entry
    }
)


def sources() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ELSEWHERE
    ]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def texts(node: ast.AST) -> Iterator[list[str]]:
    """The constant parts of each text in an expression."""
    if isinstance(node, ast.JoinedStr):
        yield [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield [node.value]
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def longest(nodes: list[ast.expr], names: dict[str, list[ast.expr]]) -> str:
    """The longest constant part in arguments; ``names`` are the variables of the function."""
    found = [*nodes]
    for node in nodes:
        if isinstance(node, ast.Name):
            found += names.get(node.id, [])
    parts = [part for node in found for text in texts(node) for part in text]
    return max(map(squeezed, parts), key=len, default="")


def variables(function: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def messages(path: Path) -> set[str]:
    """The longest constant part of each message that a file has."""
    found = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        names = variables(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in LOGGING:
                    found.add(longest(node.args, names))
        if function.name in MAKERS.get(path.name, ()):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            parts = [part for node in body for text in texts(node) for part in text]
            found.update(squeezed(part) for part in parts if len(part) > 8)
    return found - {""}


def page_of(path: Path) -> str:
    """The page that has the messages of a file."""
    if path.parent.name == "farm" or path.name.startswith(("farm", "memcache")):
        return "tlsmgr-farm.7"
    return "tlsmgr-start.8" if path.name in BY_HAND else "tlsmgr.8"


def page_text(name: str) -> str:
    """A page's source as plain text."""
    lines = []
    for line in (MAN / name).read_text().splitlines():
        macro = re.match(r"\.[A-Z][a-z] ?", line)
        lines.append(line[macro.end() :].replace('"', "") if macro else line)
    return squeezed(" ".join(lines).replace(r"\(dq", '"').replace(r"\-", "-").replace(r"\e", "\\"))


def heads() -> list[str]:
    """The messages that have an entry in tlsmgr(8), without their severity."""
    page = (MAN / "tlsmgr.8").read_text()
    section = page.partition("\n.Sh DIAGNOSTICS\n")[2].partition("\n.Sh ")[0]
    found = re.findall(r'^\.It "(?:(?:fatal|error|warning): )?(.*)"$', section, re.MULTILINE)
    return [head.replace(r"\(dq", '"') for head in found]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_message_has_an_entry(path: Path) -> None:
    page = page_text(page_of(path))
    assert [
        text for text in sorted(messages(path) - STOCK - NEVER_LOGGED) if text not in page
    ] == []


def test_no_exception_is_left_over() -> None:
    assert (STOCK | NEVER_LOGGED) - {
        text for path in sources() for text in messages(path)
    } == frozenset()


def test_each_entry_is_of_a_message() -> None:
    """A message that is gone has no entry."""
    patterns = [
        re.compile(".+".join(map(re.escape, text)))
        for path in sources()
        for text in texts(ast.parse(path.read_text()))
        if len("".join(text)) >= 10
    ]
    others = re.compile(r"\.\.\.,|^panic: |^tlsmgr does not start")  # several, or the launcher's
    gone = [
        head
        for head in heads()
        if not others.search(head) and not any(pattern.search(head) for pattern in patterns)
    ]
    assert len(heads()) > 60
    assert gone == []


def test_the_launchers_message_has_an_entry() -> None:
    (message,) = re.findall('"(tlsmgr does not start: .*)"', BODY)
    for part in message.split("$reason")[0], "; Postfix's own runs until the next reload; ":
        assert part in message
        assert squeezed(part) in page_text("tlsmgr.8")
