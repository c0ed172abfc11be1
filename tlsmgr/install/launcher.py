"""launcher - the file under daemon_directory that master(8) starts: a shell script of ours.

It runs the daemon of one checkout, with that checkout's Python, and needs nothing of the
environment. ``-I`` keeps Python from looking anywhere else for code. Should the checkout have gone,
it says so in the mail log and runs Postfix's own tlsmgr, so that mail keeps its TLS.

The file is also the record: one comment line for each Postfix instance that uses it, with the
command that the instance's master.cf had before. It is replaced by renaming, never in part. A file
of that name that is not ours is left alone; that, and a directory that can't be written, is Fatal.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tlsmgr.install.instance import STOCK
from tlsmgr.log import Fatal

NAME = "tlsmgr-prefork"
MARK = f"# {NAME} - "
USER = "# user\t"

TEMPLATE = """\
#!/bin/sh
# {name} - what Postfix's master(8) starts in place of its own tlsmgr(8).
# Written by tlsmgr-postfix(8), and removed by it with the last of the configuration directories
# below that use it; each has behind it the command that its tlsmgr service had before.
{users}
checkout={checkout}
python=$checkout/.venv/bin/python
if [ -x "$python" ]; then
    exec "$python" -I -m tlsmgr.daemon "$@"
fi
{postlog} -p warn -t {name} "cannot execute $python: running Postfix's own" >/dev/null 2>&1
exec {stock} "$@"
"""


@dataclass(frozen=True)
class Content:
    """What a launcher says: the checkout it runs, and the instances that use it.

    ``users`` has, by configuration directory, the command that was there before.
    """

    checkout: str
    users: Mapping[str, str] = field(default_factory=dict)

    def without_user(self, directory: str) -> Content:
        """The same without that user."""
        return replace(self, users={d: c for d, c in self.users.items() if d != directory})


@dataclass(frozen=True)
class Launcher:
    """The launcher in ``daemon_directory``, there or not."""

    daemon_directory: str
    command_directory: str

    @property
    def path(self) -> str:
        """Where it is."""
        return f"{self.daemon_directory}/{NAME}"

    def read(self) -> Content | None:
        """What it says, None when it is not there."""
        text = self.text()
        return None if text is None else _parse(text)

    def text(self) -> str | None:
        """The file as it is, None when it is not there."""
        try:
            text = Path(self.path).read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise Fatal(f"cannot read {self.path}: {error}") from None
        if MARK not in text:
            raise Fatal(f"{self.path} exists, and is not ours")
        return text

    def rendered(self, content: Content) -> str:
        """The file as it should be."""
        users = (f"{USER}{directory}\t{command}" for directory, command in content.users.items())
        return TEMPLATE.format(
            name=NAME,
            users="\n".join(users),
            checkout=shlex.quote(content.checkout),
            postlog=shlex.quote(f"{self.command_directory}/postlog"),
            stock=shlex.quote(f"{self.daemon_directory}/{STOCK}"),
        )

    def write(self, text: str | None) -> None:
        """Put this text in its place; with None remove it."""
        fresh = f"{self.path}.new"
        try:
            if text is None:
                os.unlink(self.path)
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755), "w") as file:
                os.fchmod(file.fileno(), 0o755)  # whatever the umask
                file.write(text)
            os.rename(fresh, self.path)
        except OSError as error:
            raise Fatal(f"cannot write {self.path}: {error.strerror}") from None


def _parse(text: str) -> Content:
    lines = text.splitlines()
    users = (line[len(USER) :].partition("\t") for line in lines if line.startswith(USER))
    checkout = next(_values(lines, "checkout"), "")
    return Content(checkout, {directory: command for directory, _, command in users})


def _values(lines: list[str], name: str) -> Iterator[str]:
    for line in lines:
        if line.startswith(f"{name}="):
            yield "".join(shlex.split(line[len(name) + 1 :]))
