"""place - the socket of the tlsmgr that tlsmgrctl asks when no ``--socket`` is given.

The Postfix of this machine that has this program enabled comes first, then scripts/tlsmgr-start.
A caller who may not enter Postfix's private directory gets the socket of tlsmgr-start if there is
one, and else Postfix's, for an error that names the directory. A Postfix that is missing, broken or
uses its own tlsmgr is no error.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from tlsmgr.install.launcher import NAME as COMMAND  # of the tlsmgr service in master.cf

SEARCH_PATH = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"
TIME_LIMIT = 10.0  # seconds for one postconf(1), which takes a hundredth


def default_socket(environment: Mapping[str, str]) -> str:
    """Return the path of the socket."""
    own, postfix = standalone_socket(environment), postfix_socket(environment)
    if postfix is None:
        return own
    private = os.path.dirname(postfix)
    return own if not os.access(private, os.X_OK) and os.path.exists(own) else postfix


def standalone_socket(environment: Mapping[str, str]) -> str:
    """Return where tlsmgr-start listens: below $XDG_STATE_HOME, or ~/.local/state."""
    state = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the XDG specification says to ignore such a value
        state = os.path.expanduser("~/.local/state")
    return os.path.join(state, "tlsmgr/private/tlsmgr")


def postfix_socket(environment: Mapping[str, str]) -> str | None:
    """Return the socket of the Postfix that has this program enabled, None if there is none."""
    parameters = _postconf(environment, "-x", "-h", "queue_directory", "tlsmgr_service_name")
    if len(parameters) != 2:
        return None
    queue_directory, service = parameters
    command = _postconf(environment, "-F", "-h", f"{service}/unix/command")
    if not command or command[0].split()[:1] != [COMMAND]:
        return None
    return f"{queue_directory}/private/{service}"


def _postconf(environment: Mapping[str, str], *arguments: str) -> list[str]:
    """Return the output of postconf(1) as lines, none when it fails."""
    kept = {name: environment[name] for name in ("MAIL_CONFIG",) if name in environment}
    path = f"{environment.get('PATH', '')}:{SEARCH_PATH}"
    try:
        run = subprocess.run(
            ["postconf", *arguments],
            env={"PATH": path, "LANG": "C", **kept},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return os.fsdecode(run.stdout).splitlines() if run.returncode == 0 else []
