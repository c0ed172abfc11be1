"""trial - what must hold, and is tried, before master.cf is touched.

``check_service`` looks at the tlsmgr line, ``check_configuration`` at main.cf and tlsmgr.cf, and
``unsafe_paths`` at whose files root is going to run. ``run`` starts the launcher just as master(8)
would, with the same options and environment, but for one request on standard input (-S): it makes
its files as mail_owner, goes to the jail and answers, or says why not. It claims no cache that is
in use, and leaves nothing but the cache files that the daemon would make at its start.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator

from tlsmgr.config.load import load
from tlsmgr.install.instance import Instance, Service
from tlsmgr.log import Fatal
from tlsmgr.processes import master

REQUEST = b"request\0seed\0size\x0032\0\0"
GOOD_REPLY = b"status\x000\0seed\0"
TIME_LIMIT = 60.0  # seconds; a cold start of Python from a slow disk takes some


def check_service(service: Service) -> None:
    """What Postfix asks of its own tlsmgr's line, too (multi_server.c)."""
    if service.process_limit != "1":
        raise Fatal(
            f"service {service.name} requires a process limit of 1 in master.cf,"
            f" where it has {service.process_limit}"
        )


def check_configuration(instance: Instance, service: Service, warn: Callable[[str], None]) -> None:
    """Fatal, in the daemon's words, for what it could not start with."""
    options = master.parse(split(service.arguments), {})
    load(instance.directory, warn, warn, overrides=options.overrides, service_name=service.name)


def run(instance: Instance, service: Service, launcher: str) -> None:
    """Start it once, as master(8) would. Fatal, with its own words, when it does not answer."""
    command = [launcher, "-l", "-S", "-V", "-n", service.name, "-t", "unix"]
    command += ["-u"] * service.unprivileged + ["-c"] * service.chroot
    try:
        done = subprocess.run(
            [*command, *split(service.arguments)],
            input=REQUEST,
            capture_output=True,
            env={"MAIL_CONFIG": instance.directory, "LANG": "C"},
            cwd=instance["queue_directory"],
            timeout=TIME_LIMIT,
        )
    except OSError as error:
        raise Fatal(f"cannot execute {launcher}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Fatal(f"tried it: no answer in {TIME_LIMIT:g} s") from None
    if done.returncode != 0 or not done.stdout.startswith(GOOD_REPLY):
        raise Fatal(f"tried it: {_complaint(done.stderr, done.returncode)}")


def _complaint(output: bytes, status: int) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    grave = [line for line in lines if "fatal: " in line] or lines
    return grave[-1] if grave else f"exit status {status}; the mail log has the reason"


def split(text: str) -> list[str]:
    """The words of a master.cf line as master(8) makes arguments of them (master_ent.c).

    They end at a blank; ``{ a b }`` is one word, without the braces and the blanks within them.
    """
    words: list[str] = []
    depth, word = 0, ""
    for char in f"{text} ":
        depth += (char == "{") - (char == "}")
        if depth == 0 and char.isspace():
            words += [word] if word else []
            word = ""
        else:
            word += char
    return [w[1:-1].strip() if w.startswith("{") and w.endswith("}") else w for w in words]


# Whose files?


def unsafe_paths(checkout: str) -> Iterator[str]:
    """Files and directories of what root is to run that somebody else may change."""
    python = os.path.realpath(f"{checkout}/.venv/bin/python")
    for path in (checkout, python):
        yield from filter(_is_open, _with_parents(path))
    for top in (f"{checkout}/tlsmgr", f"{checkout}/.venv"):
        for directory, _, files in os.walk(top):
            yield from filter(_is_open, [directory, *(f"{directory}/{name}" for name in files)])


def _with_parents(path: str) -> Iterator[str]:
    while path != "/":
        yield path
        path = os.path.dirname(path)


def _is_open(path: str) -> bool:
    """Whether a user other than root may write to it, or replace what is in it."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return status.st_uid != 0
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid != 0 or bool(others and not status.st_mode & stat.S_ISVTX)
