"""tlsmgrctl report on the log of the real Postfix, with stock's tlsmgr(8) and with ours."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from support.launcher import launcher
from support.postfix_instance import PostfixInstance, postfix_missing

from tlsmgr.ctl.main import main

PROXIED = {"smtp_tls_connection_reuse": "yes", "smtp_connection_cache_on_demand": "no"}
LEVEL_1 = {"smtp_tls_loglevel": "1", "smtpd_tls_loglevel": "1"}
TLS_1_2 = {"smtp_tls_mandatory_protocols": "<=TLSv1.2"}


def reported(postfix: PostfixInstance) -> dict[str, Any]:
    """Return the services of the report on that system's log, by name."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["report", "--json", str(postfix.log_file)]) == 0
    return {row["service"]: row for row in json.loads(output.getvalue())["services"]}


@pytest.mark.parametrize("tlsmgr", ["stock", "ours"])
@pytest.mark.parametrize(
    ("parameters", "known"),
    [
        ({}, True),
        (TLS_1_2, True),
        (PROXIED, True),
        (LEVEL_1, True),
        ({**LEVEL_1, **TLS_1_2}, False),
    ],
    ids=["TLS 1.3", "TLS 1.2", "tlsproxy", "level 1", "level 1, TLS 1.2"],
)
def test_three_messages(tlsmgr: str, parameters: Mapping[str, str], known: bool) -> None:
    """The first has a full handshake, the others resume its session; the report knows when."""
    if reason := postfix_missing("btree"):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        command = "tlsmgr" if tlsmgr == "stock" else stack.enter_context(launcher())
        services = "tlsproxy  unix - - n - 0 tlsproxy\n"
        postfix = stack.enter_context(
            PostfixInstance(tlsmgr=command, mail=True, services=services, parameters=parameters)
        )
        postfix.deliver(3)
        postfix.wait_log(r"/discard\[\d+\]: .*status=sent", 3)
        assert bool(postfix.log_lines(r"/tlsproxy\[")) == (parameters is PROXIED)
        rows = reported(postfix)
        assert set(rows) == {"postfix/smtp", "postfix/smtpd"}
        for row in rows.values():
            counted = [row[name] for name in ("connections", "full", "resumed", "unknown")]
            assert counted == ([3, 1, 2, 0] if known else [3, 0, 0, 3])
        found = {"lookups": 3, "found": 2, "missed": 1, "lost": 0, "elsewhere": 0}
        assert rows["postfix/smtp"]["cache"] == (
            found if "smtp_tls_loglevel" not in parameters else None
        )
        assert rows["postfix/smtpd"]["cache"] is None
