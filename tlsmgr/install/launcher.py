"""launcher - the shell script under daemon_directory that master(8) starts.

It runs the daemon of one installation, with its Python. ``-I`` keeps Python from looking elsewhere
for code. When the daemon does not start, it runs Postfix's own tlsmgr, with one warning in the mail
log; the next reload tries ours again.

It cannot wait for Python, because master(8) knows this process's id. So it writes a note before it
becomes Python (see bootstrap), and looks for the note of the start before: "starting" is a start
that died, "failed" one that gave its reason. A note counts only under the master(8) that it names.
Before Python runs, the launcher also sends master(8) the two status messages of a service that has
served once; without them master(8) would wait 60 s before the next start of one that died.

Good starts cost 0.3 ms more than a plain exec. Not covered: a Python that hangs; a start that dies
while pid/ in the queue directory cannot be written, or before master(8) has read the messages.

The file is replaced by rename. A file of that name that is not ours is Fatal. It serves every
instance with that daemon_directory, and stays when one of them is disabled.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tlsmgr.bootstrap import NOTE
from tlsmgr.install.installation import Installation
from tlsmgr.install.instance import STOCK, write_file
from tlsmgr.log import Fatal

NAME = "tlsmgr-prefork"
MARK = f"#!/bin/sh\n# {NAME} - "
SHIFTS = {"little": "0 8 16 24", "big": "24 16 8 0"}

HEAD = """\
started by Postfix's master(8) in place of its own tlsmgr(8).
# Written by tlsmgr-postfix(8). When this tlsmgr does not start, Postfix's own runs.
"""
BODY = """\
bootstrap=$checkout/tlsmgr/bootstrap.py
cure="to repair it: $command enable"

run_stock() {
    printf '%s\\n' "stock $PPID $reason" >"$note"
    "$postlog" -p warn -t "${MAIL_LOGTAG:-postfix}/tlsmgr" \\
        "tlsmgr does not start: $reason; Postfix's own runs until the next reload; $cure"
    exec "$stock" "$@"
}

send_status() { # 0: busy, 1: free; a struct MASTER_STATUS
    message=
    for number in $$ $((0$GENERATION)) "$1"; do
        for shift in $shifts; do
            byte=$((number >> shift & 255))
            message=$message\\\\$((byte >> 6))$((byte >> 3 & 7))$((byte & 7))
        done
    done
    printf "$message" >&5
}

await_master() { # until it sleeps, and so has read the messages; 20 ms at most
    tries=0
    while [ $((tries += 1)) -le 500 ]; do
        while read -r key value rest && [ "$key" != State: ]; do :; done </proc/$PPID/status
        [ "$value" != S ] || return
    done
}

if [ -n "$GENERATION" ]; then # by master(8); else it is a test start
    state= master= reason=
    [ -s "$note" ] && read -r state master reason <"$note"
    case "$state $master" in
        "failed $PPID") run_stock "$@" ;;
        "starting $PPID") reason='it died without a message' && run_stock "$@" ;;
    esac
    [ -x "$python" ] || { reason="cannot execute $python" && run_stock "$@"; }
    [ -r "$bootstrap" ] || { reason="cannot read $bootstrap" && run_stock "$@"; }
    echo "starting $PPID" >"$note" && send_status 0 && send_status 1 && await_master
fi
exec "$python" -I "$bootstrap" "$@"
"""


class Note(NamedTuple):
    """The first line of the note: "starting", "failed" or "stock"; master's pid; the reason."""

    state: str = ""
    master: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Launcher:
    """The launcher of the instances with these directories, whether or not it exists."""

    daemon_directory: str
    command_directory: str

    @property
    def path(self) -> str:
        """Where it is."""
        return f"{self.daemon_directory}/{NAME}"

    def text(self) -> str | None:
        """Return the file's content, None when there is none."""
        try:
            text = Path(self.path).read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise Fatal(f"cannot read {self.path}: {error}") from None
        if not text.startswith(MARK):
            raise Fatal(f"{self.path} exists, and is not ours; move it away")
        return text

    def checkout(self) -> str | None:
        """Return the directory of the installation that it runs, None when there is none."""
        text = self.text()
        lines = [] if text is None else text.splitlines()
        return next(("".join(shlex.split(x[9:])) for x in lines if x.startswith("checkout=")), None)

    @contextlib.contextmanager
    def candidate(self, installation: Installation) -> Iterator[str]:
        """Write it beside its place, for a test start; yield the path. ``install`` moves it."""
        path = f"{self.path}.new"
        try:
            write_file(path, self._rendered(installation).encode(), 0o755)
            yield path
        except OSError as error:
            raise Fatal(f"cannot write {path}: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def install(self, candidate: str) -> bool:
        """Put the candidate in place. Return False when the launcher is like that already."""
        if Path(candidate).read_text() == self.text():
            return False
        os.rename(candidate, self.path)
        return True

    def _rendered(self, installation: Installation) -> str:
        values = {
            "checkout": installation.directory,
            "python": installation.python,
            "command": installation.command,
            "stock": f"{self.daemon_directory}/{STOCK}",
            "postlog": f"{self.command_directory}/postlog",
            "note": NOTE,
            "shifts": SHIFTS[sys.byteorder],
        }
        assignments = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
        return "".join((MARK, HEAD, *assignments, BODY))


def read_note(queue_directory: str) -> Note:
    """Return what the last start under master(8) left."""
    try:
        line, _, _ = Path(queue_directory, NOTE).read_text(errors="replace").partition("\n")
    except OSError:
        return Note()
    return Note(*line.split(" ", 2))
