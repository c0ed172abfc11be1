"""trial - the test start before master.cf is changed, and the check of its line beside it.

``run`` starts the launcher as master(8) would, with the same options and environment, but for one
request on standard input (-S). The daemon makes its files as mail_owner, enters the jail, answers,
and ends. It uses no cache that is in use, and leaves only the cache files that every start makes.
"""

from __future__ import annotations

import subprocess

from tlsmgr.config.syntax import split_arguments
from tlsmgr.install.instance import Postfix, Service
from tlsmgr.log import Fatal

REQUEST = b"request\0seed\0size\x0032\0\0"
GOOD_REPLY = b"status\x000\0seed\0"
TIME_LIMIT = 60.0  # seconds; a cold start of Python from a slow disk takes some


def check_service(service: Service) -> None:
    """Raise Fatal if the tlsmgr line is not what Postfix's own requires (multi_server.c)."""
    if service.process_limit != "1":
        raise Fatal(
            f"service {service.name} requires a process limit of 1 in master.cf,"
            f" where it has {service.process_limit}"
        )


def run(instance: Postfix, service: Service, launcher: str) -> list[str]:
    """Start it once, as master(8) would. Return its warnings; Fatal when it does not answer."""
    command = [launcher, "-l", "-S", "-V", "-n", service.name, "-t", "unix"]
    command += ["-u"] * service.unprivileged + ["-c"] * service.chroot
    try:
        done = subprocess.run(
            [*command, *split_arguments(service.arguments)],
            input=REQUEST,
            capture_output=True,
            env={"MAIL_CONFIG": instance.directory, "LANG": "C"},
            cwd=instance["queue_directory"],
            timeout=TIME_LIMIT,
        )
    except OSError as error:
        raise Fatal(f"cannot execute {launcher}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Fatal(f"test start failed: no answer in {TIME_LIMIT:g} s") from None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode != 0 or not done.stdout.startswith(GOOD_REPLY):
        raise Fatal(f"test start failed: {_reason(lines, done.returncode)}")
    return [
        line.partition("]: ")[2] for line in lines if "]: warning: " in line or "]: error: " in line
    ]


def _reason(lines: list[str], status: int) -> str:
    texts = [line.partition("fatal: ")[2] for line in lines if "fatal: " in line] or lines
    return texts[-1] if texts else f"exit status {status}; the mail log has the reason"
