"""late_call - call old workers although a file of the TLS policy was changed: the policy was not.

The usual reason of a reload is an edit of main.cf, and most edits have nothing to do with TLS. To
read the configuration takes a third of the time that it takes to load the daemon, so the bootstrap
does it first, and clients wait only that long for the old workers (see ``bridge``). The daemon
reads the configuration again, and logs what is wrong with it; nothing is logged here.

Runs in the parent, before anything but the configuration and ``master`` is imported. Any exception
means that nobody is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tlsmgr.config import policy_digest
from tlsmgr.config.load import directory_of, load
from tlsmgr.processes import bridge, master


def consider(met: bridge.Met, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Have them called if the TLS policy is theirs, for a start by master(8) with these."""
    options = master.parse(arguments, environment)
    conf = load(
        directory_of(environment),
        _ignore,
        _ignore,
        overrides=options.overrides,
        service_name=options.service_name,
    )
    bridge.call_late(met, policy_digest.summary(policy_digest.read(conf).digests))


def _ignore(_: str) -> None:
    """Take a warning."""
