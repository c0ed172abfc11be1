"""instance - one Postfix system: its parameters, the tlsmgr line of its master.cf, what it runs.

Everything goes through Postfix's own commands, so that this file knows no syntax of theirs: main.cf
is read, and master.cf is read and edited, by postconf(1); whether the system runs is asked as
Postfix's own scripts do, with ``master -t``. An edit replaces the command of one service and
nothing else; postconf writes a new file and renames it.

Run by root. Whatever goes wrong is Fatal, with the words of the command that failed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from tlsmgr.client import Client, TlsmgrError
from tlsmgr.log import Fatal

STOCK = "tlsmgr"  # the command of the shipped master.cf
OURS = "tlsmgr.daemon"  # what the command line of our parent, and of its workers, has
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
ANSWER_TIME = 20.0  # seconds for a reloaded Postfix to serve with the right tlsmgr
PROBE_TIME = 1.0  # seconds for one try of that
HELD_BACK = 2  # tries in a row that find no process
PAUSE = 0.05  # seconds between two tries


class Service(NamedTuple):
    """The tlsmgr line of master.cf. ``command`` is its first word, ``arguments`` the rest."""

    name: str
    unprivileged: bool
    chroot: bool
    process_limit: str
    command: str
    arguments: str


class Running(NamedTuple):
    """A tlsmgr that master(8) started; ``command`` is what it was started as, if not ours."""

    pid: int
    ours: bool
    command: str


class Snapshot(NamedTuple):
    """A file's content, and whose it is."""

    text: bytes
    status: os.stat_result

    def give_mode_to(self, path: str) -> None:
        """Mode and owner for a file that takes its place; postconf makes it 0644."""
        os.chmod(path, self.status.st_mode & 0o7777)
        os.chown(path, self.status.st_uid, self.status.st_gid)


class Instance:
    """The Postfix system with that configuration directory; None for the default one."""

    def __init__(self, directory: str | None) -> None:
        self._postconf = shutil.which("postconf", path=_search_path())
        if self._postconf is None:
            raise Fatal("postconf is missing: is Postfix installed?")
        if directory is None:
            directory = _run([self._postconf, "-h", "config_directory"]).strip()
        self.directory = os.path.abspath(directory)
        if not self.directory.isprintable():
            raise Fatal(f"unprintable name of a directory: {self.directory!r}")
        self.parameters = self._read_parameters()
        check_version(self["mail_version"])
        self.socket = f"{self['queue_directory']}/private/{self['tlsmgr_service_name']}"

    def __getitem__(self, parameter: str) -> str:
        """The expanded value of one of PARAMETERS."""
        return self.parameters[parameter]

    def _read_parameters(self) -> Mapping[str, str]:
        lines = self._ask("-x", *PARAMETERS).splitlines()
        pairs = (line.partition("=") for line in lines)
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _ask(self, *arguments: str) -> str:
        return _run([str(self._postconf), "-c", self.directory, *arguments])

    # master.cf

    @property
    def master_cf(self) -> str:
        """The path of the file."""
        return f"{self.directory}/master.cf"

    def service(self) -> Service:
        """The tlsmgr line as it is now."""
        name = self["tlsmgr_service_name"]
        lines = self._ask("-F", f"{name}/unix").splitlines()
        pairs = (line.partition("=") for line in lines)
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
        """Replace the first word of the command, and leave all else of the line as it is."""
        service = self.service()
        text = f"{command} {service.arguments}".rstrip()
        before = self.snapshot()
        self._ask("-F", f"{service.name}/unix/command={text}")
        before.give_mode_to(self.master_cf)
        if self.service().command != command:
            raise Fatal(f"postconf did not change {self.master_cf}")

    def remove_service(self) -> None:
        """Take the tlsmgr line out of master.cf."""
        self._ask("-X", "-M", f"{self['tlsmgr_service_name']}/unix")

    def snapshot(self) -> Snapshot:
        """master.cf as it is."""
        return Snapshot(Path(self.master_cf).read_bytes(), os.stat(self.master_cf))

    def restore(self, before: Snapshot) -> None:
        """Make master.cf what it was, to the byte."""
        fresh = f"{self.master_cf}.tlsmgr"
        Path(fresh).write_bytes(before.text)
        before.give_mode_to(fresh)
        os.rename(fresh, self.master_cf)

    # Processes.

    def runs(self) -> bool:
        """Whether master(8) of this system runs."""
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
        """Whether a tlsmgr, ours or not, answers; master(8) starts one if need be."""
        try:
            with Client(self.socket, PROBE_TIME) as client:
                client.policy("smtpd")
        except TlsmgrError:
            return False
        return True

    def refuses(self) -> bool:
        """Whether nobody listens for clients of a tlsmgr any more."""
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(self.socket)
            except (ConnectionRefusedError, FileNotFoundError):
                return True
        return False

    def tlsmgr(self) -> Running | None:
        """The tlsmgr that master(8) runs now, if it runs one."""
        children = self._children()
        known = (self.service().command, STOCK, f"{self['daemon_directory']}/{STOCK}")
        for pid, words in children:
            if OURS in words:
                return Running(pid, True, "")
            if words[0] in known:
                return Running(pid, False, os.path.basename(words[0]))
        return None

    def serves_with(self, ours: bool, before: Running | None) -> bool:
        """Wait until a tlsmgr answers that is ours, or is not; False when none does.

        ``before`` is what ran before the reload, and must have gone. master(8) starts one for the
        client that asks here; where there is none all the same, it has crashed, and master(8)
        holds it back for a minute.
        """
        deadline, absent = time.monotonic() + ANSWER_TIME, 0
        while time.monotonic() < deadline and absent < HELD_BACK:
            answered, running = self.answers(), self.tlsmgr()
            fresh = running is None or before is None or running.pid != before.pid
            if answered and fresh and (running is not None and running.ours) == ours:
                return True
            absent = absent + 1 if running is None and not answered else 0
            time.sleep(PAUSE)
        return False

    def _children(self) -> list[tuple[int, list[str]]]:
        try:
            master = Path(self["queue_directory"], "pid/master.pid").read_text().strip()
        except OSError:
            return []
        pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == master]
        return [(int(pid), words) for pid in pids if (words := _command_line(pid))]


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for the condition to hold; False when it does not in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE)
    return True


def check_version(version: str) -> None:
    """Fatal for a Postfix whose programs do not expect the announcement."""
    numbers = version.partition("-")[0].split(".")[:2]
    if tuple(int(number) for number in numbers if number.isdigit()) < OLDEST:
        raise Fatal(
            f"Postfix {version} is too old: {'.'.join(map(str, OLDEST))} or later is needed"
        )


def _run(command: Sequence[str]) -> str:
    """What the command prints. Fatal, with the last line of its complaint, when it fails."""
    # Files, no pipes: what postfix(1) leaves in the background would keep those open.
    with _scratch() as output, _scratch() as complaint:
        done = subprocess.run(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=complaint,
        )
        complaint.seek(0)
        output.seek(0)
        if done.returncode != 0:
            lines = complaint.read().strip().splitlines() or [f"exit status {done.returncode}"]
            raise Fatal(f"{os.path.basename(command[0])}: {lines[-1].rpartition('fatal: ')[2]}")
        return output.read()


def _scratch() -> IO[str]:
    return tempfile.TemporaryFile("w+", errors="replace")


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{SEARCH_PATH}"


def _environment() -> dict[str, str]:
    kept = {"MAIL_CONFIG": os.environ["MAIL_CONFIG"]} if "MAIL_CONFIG" in os.environ else {}
    return {"PATH": _search_path(), "LANG": "C", **kept}


def _parent(pid: str) -> str:
    try:
        stat = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[1]  # proc(5); a name in parentheses may be anything


def _command_line(pid: str) -> list[str]:
    """Its words; none for a process that has ended meanwhile."""
    try:
        return Path("/proc", pid, "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
