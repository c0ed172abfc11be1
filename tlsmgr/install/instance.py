"""instance - a Postfix instance: its parameters, the tlsmgr line of master.cf, its processes.

Parameters and services are read with postconf(1); whether the instance runs is asked as Postfix's
own scripts do, with ``master -t``. The one edit replaces the command of the tlsmgr service and
nothing else, no blank and no comment. The file is replaced by rename, so that a process that dies
at any moment leaves a master.cf that works.

For root. Any failure is Fatal, with the command that failed and the last line of its output.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from tlsmgr.client import Client, TlsmgrError
from tlsmgr.log import Fatal

STOCK = "tlsmgr"  # the command of the shipped master.cf
OURS = "/tlsmgr/bootstrap.py"  # the end of an argument of our processes
OLDEST = (3, 6)  # Postfix before 3.6 takes the announcement of the protocol for a broken connection
SEARCH_PATH = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"
PARAMETERS = (
    "mail_version",
    "compatibility_level",
    "tlsmgr_service_name",
    "daemon_directory",
    "command_directory",
    "queue_directory",
)
COMMAND_FIELD = 7  # of a master.cf entry; service name and type are 0 and 1
ANSWER_TIME = 70.0  # seconds; master(8) holds back a service that crashed for 60
PROBE_TIME = 5.0  # seconds for one request
PAUSE = 0.05  # seconds between two tries


class Service(NamedTuple):
    """The tlsmgr line of master.cf; ``arguments`` is what follows the command."""

    name: str
    unprivileged: bool
    chroot: bool
    process_limit: str
    command: str
    arguments: str


class Running(NamedTuple):
    """A tlsmgr that master(8) started, and when, in seconds of time.time()."""

    pid: int
    ours: bool
    started: float


class Postfix:
    """The Postfix instance with that configuration directory; None for the default one."""

    def __init__(self, directory: str | None) -> None:
        self._postconf = shutil.which("postconf", path=_search_path())
        if self._postconf is None:
            raise Fatal("postconf is missing: is Postfix installed?")
        if directory is None:
            directory = _run([self._postconf, "-h", "config_directory"]).strip()
        self.directory = os.path.abspath(directory)
        if not self.directory.isprintable():
            raise Fatal(f"unprintable name of a directory: {self.directory!r}")
        self.parameters = self.values(*PARAMETERS)
        check_version(self["mail_version"])
        self.master_cf = f"{self.directory}/master.cf"

    def __getitem__(self, parameter: str) -> str:
        """Return the expanded value of one of PARAMETERS."""
        return self.parameters[parameter]

    def values(self, *names: str) -> Mapping[str, str]:
        """Return the expanded values of these parameters of Postfix."""
        pairs = (line.partition("=") for line in self._ask("-x", *names).splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _ask(self, *arguments: str) -> str:
        return _run([str(self._postconf), "-c", self.directory, *arguments])

    # master.cf

    def service(self) -> Service:
        """Return the tlsmgr line as it is now."""
        name = self["tlsmgr_service_name"]
        pairs = (line.partition("=") for line in self._ask("-F", f"{name}/unix").splitlines())
        fields = {key.strip().rpartition("/")[2]: value.strip() for key, _, value in pairs}
        if not fields:
            raise Fatal(f"{self.master_cf} has no service {name} of type unix")
        command, _, arguments = fields["command"].partition(" ")
        old = self["compatibility_level"].partition(".")[0] == "0"  # master_ent.c: chroot default
        return Service(
            name,
            fields["unprivileged"] in ("y", "-"),
            fields["chroot"] == "y" or (fields["chroot"] == "-" and old),
            fields["process_limit"],
            command,
            arguments.strip(),
        )

    def set_command(self, command: str) -> None:
        """Replace the command of the tlsmgr service."""
        path = os.path.realpath(self.master_cf)
        text = Path(path).read_bytes().decode(errors="surrogateescape")
        places = command_places(text, self["tlsmgr_service_name"])
        if len(places) != 1:
            raise Fatal(f"{self.master_cf}: expected one tlsmgr service, found {len(places)}")
        ((start, end),) = places
        edited = f"{text[:start]}{command}{text[end:]}"
        status = os.stat(path)
        owner = (status.st_uid, status.st_gid)
        write_file(path, edited.encode(errors="surrogateescape"), status.st_mode & 0o7777, owner)

    # Processes.

    def master_pid(self) -> str:
        """Return the process id of master(8), as text; empty when it does not run."""
        try:
            return Path(self["queue_directory"], "pid/master.pid").read_text().strip()
        except OSError:
            return ""

    def runs(self) -> bool:
        """Return whether master(8) of this instance runs."""
        done = subprocess.run(
            [f"{self['daemon_directory']}/master", "-t"],
            env={**_environment(), "MAIL_CONFIG": self.directory},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return done.returncode != 0

    def reload(self) -> None:
        """Have master(8) read master.cf again, and end the tlsmgr that runs."""
        _run([f"{self['command_directory']}/postfix", "-c", self.directory, "reload"])

    def answers(self) -> bool:
        """Return whether a tlsmgr gives a seed; master(8) starts one if need be."""
        path = f"{self['queue_directory']}/private/{self['tlsmgr_service_name']}"
        try:
            with Client(path, PROBE_TIME) as client:
                return len(client.seed(32)) == 32
        except TlsmgrError:
            return False

    def tlsmgr(self) -> Running | None:
        """Return the tlsmgr that master(8) runs now, None when it runs none."""
        master = self.master_pid()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            fields, arguments = _status_fields(pid), _command_line(pid)
            if not arguments or not fields or fields[1] != master:
                continue
            ours = any(argument.endswith(OURS) for argument in arguments)
            if ours or arguments[0] in (STOCK, f"{self['daemon_directory']}/{STOCK}"):
                age = time.clock_gettime(time.CLOCK_BOOTTIME)
                age -= int(fields[19]) / os.sysconf("SC_CLK_TCK")
                return Running(int(pid), ours, time.time() - age)
        return None

    def wait_for_answer(self, before: Running | None) -> Running | None:
        """Return the first tlsmgr that answers and is not ``before``, None when there is none."""
        deadline = time.monotonic() + ANSWER_TIME
        while time.monotonic() < deadline:
            running = self.tlsmgr()
            answers = self.answers()
            is_new = running is not None and (before is None or running.pid != before.pid)
            now = self.tlsmgr()
            if answers and is_new and now and running and (now.pid, now.ours) == running[:2]:
                return running
            time.sleep(PAUSE)
        return None


def command_places(text: str, service: str) -> list[tuple[int, int]]:
    """Return where, in the text of a master.cf, the command of each such service begins and ends.

    An entry goes on in lines that begin with a blank; empty lines and comments may be in between.
    """
    found: list[tuple[int, int]] = []
    fields: list[str] = []
    position = 0
    for line in text.split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            if not line[0].isspace():
                fields = []
            for match in re.finditer(r"\S+", line):
                fields.append(match[0])
                if len(fields) == COMMAND_FIELD + 1 and fields[:2] == [service, "unix"]:
                    found.append((position + match.start(), position + match.end()))
        position += len(line) + 1
    return found


def write_file(path: str, content: bytes, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
    """Replace a file by rename, with that mode and owner; on the disk when this returns."""
    fresh = f"{path}.tlsmgr-new"
    Path(fresh).unlink(missing_ok=True)
    with open(fresh, "xb") as file:
        os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh, path)


def check_version(version: str) -> None:
    """Raise Fatal for a Postfix whose programs do not expect the announcement."""
    numbers = version.partition("-")[0].split(".")[:2]
    if tuple(int(number) for number in numbers if number.isdigit()) < OLDEST:
        raise Fatal(
            f"Postfix {version} is too old: {'.'.join(map(str, OLDEST))} or later is needed"
        )


def _run(command: Sequence[str]) -> str:
    """Return the output of a command."""
    # Files, no pipes: processes that postfix(1) leaves in the background would keep those open.
    with _scratch() as output, _scratch() as errors:
        done = subprocess.run(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        )
        output.seek(0)
        errors.seek(0)
        if done.returncode == 0:
            return output.read()
        lines = errors.read().strip().splitlines()
    shown = shlex.join([os.path.basename(command[0]), *command[1:4]])
    reason = lines[-1].rpartition("fatal: ")[2] if lines else "the mail log has the reason"
    raise Fatal(f"'{shown}' failed, exit status {done.returncode}: {reason}")


def _scratch() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{SEARCH_PATH}"


def _environment() -> dict[str, str]:
    kept = {"MAIL_CONFIG": os.environ["MAIL_CONFIG"]} if "MAIL_CONFIG" in os.environ else {}
    return {"PATH": _search_path(), "LANG": "C", **kept}


def _status_fields(pid: str) -> list[str]:
    """Return the fields of /proc/PID/stat after the name; none when the process has ended."""
    try:
        stat = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # proc(5); the name may hold anything


def _command_line(pid: str) -> list[str]:
    """Return the arguments of a process; none when it has ended."""
    try:
        return Path("/proc", pid, "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
