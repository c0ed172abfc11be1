"""The options and the environment that master(8) gives, held against stock tlsmgr(8).

Options that are refused, with the text; options that are accepted, and their effect.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.master_child import BOTH, NEEDS_POSTFIX, PATIENCE, MasterChild
from support.raw_client import Connection, policy, policy_is

pytestmark = NEEDS_POSTFIX

# Options and environment that are refused.

UNIX = ("-l", "-t", "unix")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown option": (("-q",), "invalid option: q"),
    "no argument": ((*UNIX, "-o"), "invalid option: o"),
    "no limit": (("-t", "unix"), "service tlsmgr requires a process limit of 1"),
    "limit 0": (("-z", "-n", "other"), "service other requires a process limit of 1"),
    "no transport": (("-l",), "no transport type specified"),
    "transport": (("-l", "-t", "fifo"), "unsupported transport type: fifo"),
    "no sockets": ((*UNIX, "-s", "0"), "invalid socket_count: 0"),
    "sockets below 0": ((*UNIX, "-s", "-1"), "invalid socket_count: -1"),
    "sockets in words": ((*UNIX, "-s", "two"), "invalid socket_count: two"),
    "no value": (
        (*UNIX, "-o", "foo"),
        "invalid \"-o foo\" option value: missing '=' after attribute name",
    ),
    "max_idle": ((*UNIX, "-i", "abc"), "parameter max_idle: bad time value or unit: abc"),
    "max_use": ((*UNIX, "-m", "0"), "invalid max_use parameter value 0 < 1"),
    "later wins": ((*UNIX, "-i", "1s", "-o", "max_idle=0"), "invalid max_idle: 0 (min 1)"),
    "no debugger": ((*UNIX, "-D"), "no debugger_command variable set up"),
    "timeout": (
        (*UNIX, "-o", "smtp_tls_session_cache_timeout=8640001"),
        "invalid smtp_tls_session_cache_timeout: 8640001 (max 8640000)",
    ),
    "one file": (
        (*UNIX, "-o", "smtp_tls_session_cache_database = $smtpd_tls_session_cache_database"),
        "do not use the same TLS cache file btree:DATA/smtpd_scache for smtpd and smtp",
    ),
    # Of two mistakes, the one that is checked first is logged.
    "option, owner": (("-q", "-o", "mail_owner=nosuch"), "invalid option: q"),
    "owner, limit": (
        ("-o", "mail_owner=nosuch"),
        "file CONFIG/main.cf: parameter mail_owner: unknown user name value: nosuch",
    ),
    "parameter, limit": (
        ("-o", "tls_random_bytes=0"),
        "invalid tls_random_bytes parameter value 0 < 1",
    ),
    "limit, transport": (("-t", "fifo"), "service tlsmgr requires a process limit of 1"),
}
GENERATIONS: dict[str, tuple[tuple[str, ...], str]] = {
    f"generation {text}": (UNIX, f"bad generation: {text}")
    for text in ("abc", "", " 17", "-1", "0o17", "1_7")
}
ELSEWHERE: dict[str, tuple[tuple[str, ...], str]] = {  # there is no log to be found: -V is asked
    "no queue directory": (
        (*UNIX, "-V", "-o", "queue_directory=/nonexistent"),
        'chdir("/nonexistent"): No such file or directory',
    ),
    "maillog_file": (
        (*UNIX, "-V", "-o", "maillog_file=/usr/x"),
        "maillog_file value '/usr/x' does not match any prefix in maillog_file_prefixes",
    ),
}


TERMINAL = -1  # stands for the descriptor of one

SPECIAL: dict[str, dict[str, Any]] = {  # each has its own test
    "no main.cf": {"options": UNIX, "environment": {"MAIL_CONFIG": "/nonexistent"}},
    "option, -V": {"options": ("-V", "-x")},
    "sockets, -V": {"options": ("-V", "-s", "0", *UNIX)},
    "main.cf, -V": {"arguments": ["-V", "-o", "ipc_timeout=x"]},
    "by hand": {"options": UNIX, "stdin": TERMINAL},
    "by hand, no master": {"options": (), "stdin": TERMINAL},
}
OURS_ALONE: dict[str, dict[str, Any]] = {"no option": {"arguments": ["hello"]}}

Refused = dict[tuple[bool, str], MasterChild]
"""By whether it is stock's, and the case."""


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """The descriptor of a terminal."""
    ours, theirs = pty.openpty()
    try:
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.fixture(scope="module")
def refused() -> Iterator[Refused]:
    """All children that are refused, at once: each of them sleeps for a second before it ends."""
    cases: dict[str, dict[str, Any]] = {
        case: {"options": options} for case, (options, _) in {**REFUSED, **ELSEWHERE}.items()
    }
    for case, (options, _) in GENERATIONS.items():
        generation = {"GENERATION": case.partition(" ")[2]}
        cases[case] = {"options": options, "environment": generation}
    starts = [(stock, case, cases[case]) for stock in (True, False) for case in cases]
    starts += [(stock, case, SPECIAL[case]) for stock in (True, False) for case in SPECIAL]
    starts += [(False, case, OURS_ALONE[case]) for case in OURS_ALONE]
    with terminal() as tty, contextlib.ExitStack() as stack:
        children = {}
        for stock, case, settings in starts:
            given = {**settings, "stdin": tty} if "stdin" in settings else settings
            children[stock, case] = stack.enter_context(MasterChild(stock=stock, **given))
        yield children


@BOTH
@pytest.mark.parametrize("case", [*REFUSED, *GENERATIONS, *ELSEWHERE])
def test_refused(refused: Refused, stock: bool, case: str) -> None:
    child = refused[stock, case]
    _, text = {**REFUSED, **GENERATIONS, **ELSEWHERE}[case]
    text = text.replace("DATA", str(child.data)).replace("CONFIG", str(child.config))
    assert child.wait(PATIENCE) == 1
    assert child.texts("fatal") == [f"fatal: {text}"]
    assert child.messages == []


@BOTH
def test_no_main_cf(refused: Refused, stock: bool) -> None:
    child = refused[stock, "no main.cf"]
    assert child.wait(PATIENCE) == 1
    assert child.texts("fatal") == ["fatal: open /nonexistent/main.cf: No such file or directory"]


@BOTH
def test_a_pause_before_a_refusal_ends(stock: bool) -> None:
    """Lest master(8) starts one after the other in a tight loop."""
    began = time.monotonic()
    with MasterChild(stock=stock, options=["-q"]) as child:
        assert child.wait(PATIENCE) == 1
    assert time.monotonic() - began > 1


@BOTH
@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("option, -V", "invalid option: x"),
        ("sockets, -V", "invalid socket_count: 0"),
    ],
)
def test_a_refusal_goes_to_standard_error(
    refused: Refused, stock: bool, case: str, text: str
) -> None:
    child = refused[stock, case]
    assert child.wait(PATIENCE) == 1
    assert child.stderr().endswith(f"tlsmgr: fatal: {text}\n") or re.search(
        rf"tlsmgr\[\d+\]: fatal: {text}\n$", child.stderr()
    )


@BOTH
def test_errors_of_main_cf_on_standard_error_as_well(refused: Refused, stock: bool) -> None:
    child = refused[stock, "main.cf, -V"]
    assert child.wait(PATIENCE) == 1
    assert child.stderr().endswith("fatal: parameter ipc_timeout: bad time value or unit: x\n")


def test_arguments_that_are_no_options(refused: Refused) -> None:
    """Stock starts, and dies of every request."""
    child = refused[False, "no option"]
    assert child.wait(PATIENCE) == 1
    assert child.texts("fatal") == ["fatal: unexpected command-line argument: hello"]


# A terminal.


@BOTH
def test_a_start_by_hand_is_refused(refused: Refused, stock: bool) -> None:
    child = refused[stock, "by hand"]
    assert child.wait(PATIENCE) == 1
    assert child.stderr() == "tlsmgr: fatal: do not run this command by hand\n"
    assert child.texts() == ["fatal: do not run this command by hand"]


@BOTH
def test_a_start_by_hand_without_a_master(refused: Refused, stock: bool) -> None:
    """A person has no descriptors 5 and 6, and gives no options."""
    child = refused[stock, "by hand, no master"]
    assert child.wait(PATIENCE) == 1
    assert child.stderr() == "tlsmgr: fatal: do not run this command by hand\n"


@BOTH
def test_a_master_that_is_not_detached(stock: bool) -> None:
    with terminal() as tty, MasterChild(stock=stock, arguments=["-d"], stdin=tty) as child:
        with Connection(str(child.socket)) as connection:
            assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
        assert child.stop() == 0


# Options that are accepted.


@BOTH
@pytest.mark.parametrize("transport", ["UNIX", "inet"])
def test_options_that_change_nothing_here(stock: bool, transport: str) -> None:
    arguments = ["-i", "5m", "-m", "7", "-v", "-v", "-z"]
    with MasterChild(stock=stock, options=["-l", "-t", transport, *arguments]) as child:
        with Connection(str(child.socket)) as connection:
            for _ in range(10):
                assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
        assert child.stop() == 0


@BOTH
def test_service_name(stock: bool) -> None:
    arguments = ["-n", "other", "-o", "syslog_name=mine/$service_name"]
    with MasterChild(stock=stock, options=UNIX, arguments=arguments) as child:
        with Connection(str(child.socket)) as connection:
            connection.ask(b"reqest\0policy\0\0")
        line = "warning: unexpected attribute reqest from other socket (expecting: request)"
        child.wait_log("warning")
        assert child.texts("warning") == [line]
        assert all(" mail mine/other/tlsmgr[" in each for each in child.log().splitlines())


@BOTH
def test_overrides(stock: bool) -> None:
    """They win over main.cf, the later one over the earlier one, and are expanded."""
    name = "smtp_tls_session_cache_timeout"
    arguments = ["-o", f"{name}=1h", "-o", f" {name} = $mine ", "-o", "mine=2h"]
    parameters = {name: "3h", "lmtp_tls_session_cache_timeout": "$mine"}
    with (
        MasterChild(stock=stock, arguments=arguments, parameters=parameters) as child,
        Connection(str(child.socket)) as connection,
    ):
        assert connection.ask(policy(b"smtp")) == policy_is(1, 7200)
        assert b"\x007200\0" in connection.ask(policy(b"lmtp"))


@BOTH
def test_log_to_standard_error_as_well(stock: bool) -> None:
    arguments = ["-V", "-o", "smtp_tls_loglevel=nosuch"]
    with MasterChild(stock=stock, arguments=arguments) as child:
        with Connection(str(child.socket)):
            pass
        warning = 'warning: unknown smtp_tls_loglevel value "nosuch" in "nosuch"'
        assert warning in child.texts()
        assert re.search(rf"tlsmgr(\[\d+\])?: {re.escape(warning)}\n", child.stderr())
        assert child.stop() == 0


@BOTH
@pytest.mark.parametrize("how", ["-D", "MAIL_DEBUG"])
def test_debugger(stock: bool, how: str) -> None:
    """It is run by a shell, on $process_id; start-up goes on when it returns."""
    with MasterChild(
        stock=stock,
        arguments=["-D"] if how == "-D" else [],
        environment={} if how == "-D" else {how: ""},
        parameters={"debugger_command": "echo $process_name $process_id >$config_directory/seen"},
    ) as child:
        with Connection(str(child.socket)):
            assert (child.config / "seen").read_text() == f"tlsmgr {child.pid}\n"
        command = f"echo tlsmgr {child.pid} >{child.config}/seen"
        assert f"running: {command}" in child.texts()


@BOTH
def test_tag_of_the_log(stock: bool) -> None:
    """The log destination of the environment, until main.cf is known."""
    with MasterChild(
        stock=stock,
        options=UNIX,
        environment={"MAIL_LOGTAG": "early"},
        parameters={"syslog_name": "late", "smtp_tls_loglevel": "nosuch"},
        main_cf_lines="twice = 1\ntwice = 2\n",
    ) as child:
        with Connection(str(child.socket)):
            pass
        (early,) = child.wait_log("overriding earlier entry")
        assert f" mail early/tlsmgr[{child.pid}]: warning: " in early
        (late,) = child.wait_log("unknown smtp_tls_loglevel")
        assert f" mail late/tlsmgr[{child.pid}]: warning: " in late
