"""postfix_instance - a private Postfix system under master(8), for tests.

The smallest one has tlsmgr, stock's or a command of yours, and postlogd(8), and no inet service.
With mail=True it also accepts messages by SMTP and delivers them over TLS to a sink: a second
smtpd(8) of the same system, which discards them.

It writes only in its own directories and listens only on loopback; at the end all its processes
are gone, killed by pid if need be. It needs root, as Postfix does, and the package: call
need_postfix() first.

    with PostfixInstance(mail=True, chroot=True) as postfix:
        postfix.deliver(2)
        postfix.wait_log(r"/smtp\\[.*Reusing old session")
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
from dataclasses import dataclass

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.live_processes import live_group_of
from support.postfix_sandbox import (
    ENVIRONMENT,
    STOP_LIMIT,
    PostfixSandbox,
    daemon_directory,
    postconf,
    postfix_missing,
    wait_until,
)
from support.stock_tlsmgr import StockTlsmgr

__all__ = [
    "PostfixInstance",
    "StockTlsmgr",
    "need_postfix",
    "postconf",
    "postfix_missing",
    "wait_until",
]

MASTER_CF = """\
postlog   unix-dgram n - n - 1 postlogd
tlsmgr    unix - - {chroot} 1000? 1 {tlsmgr}
"""
MAIL_MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd -o smtpd_tls_security_level=none
127.0.0.1:{sink_port} inet n - n - - smtpd -o myhostname=sink.test -o content_filter=discard:sink
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
smtp      unix - - n - - smtp
discard   unix - - n - - discard
error     unix - - n - - error
retry     unix - - n - - error
anvil     unix - - n - 1 anvil
scache    unix - - n - 1 scache
showq     unix n - n - - showq
"""
MAIL_MAIN_CF = {
    "smtp_dns_support_level": "disabled",
    "smtp_tls_security_level": "encrypt",
    "smtp_tls_loglevel": "2",  # cache hits are logged from here on
    "smtpd_tls_security_level": "may",
    "smtpd_tls_loglevel": "2",
    "smtpd_peername_lookup": "no",
}

COMMAND_LIMIT = 120.0  # seconds
_OWN = ("postfix", "root", 0o700)
QUEUE = {
    **dict.fromkeys(("active", "bounce", "corrupt", "defer", "deferred", "flush"), _OWN),
    **dict.fromkeys(("hold", "incoming", "private", "saved", "trace"), _OWN),
    "maildrop": ("postfix", "postdrop", 0o730),
    "public": ("postfix", "postdrop", 0o710),
    "pid": ("root", "root", 0o755),
}
"""Owner, group and mode of the directories of a queue, as in Postfix's file postfix-files."""


def need_postfix(*map_types: str) -> None:
    """Skip the test, with the reason, where no private Postfix with these table types can run."""
    import pytest  # the measuring tool runs without it

    if reason := postfix_missing(*map_types):
        pytest.skip(reason)


@dataclass(kw_only=True, eq=False)
class PostfixInstance(PostfixSandbox):
    """A system under master(8); `port` accepts mail, `sink_port` is the sink.

    It is started and stopped as by the script of postfix(1), without that script's checks, which
    take a second. `postfix("start")` and `postfix("stop")` are the real ones.
    """

    tlsmgr: str = "tlsmgr"  # command and arguments in master.cf; an absolute path is fine
    chroot: bool = False  # of the tlsmgr service
    mail: bool = False
    services: str = ""  # more lines for master.cf

    def __post_init__(self) -> None:
        super().__post_init__()
        self._groups: set[int] = set()
        self.port, self.sink_port = _free_ports(2)
        command = self.tlsmgr
        if os.path.isabs(command):  # master(8) puts daemon_directory before every command
            command = os.path.relpath(command, daemon_directory())
        self.master_cf = MASTER_CF.format(chroot="y" if self.chroot else "n", tlsmgr=command)
        if self.mail:
            self._add_mail()
        self.master_cf += self.services

    def _add_mail(self) -> None:
        chain = self.config / "sink.pem"
        chain.write_bytes(self_signed("sink.test"))
        self.master_cf += MAIL_MASTER_CF.format(port=self.port, sink_port=self.sink_port)
        self.main_cf = {
            **MAIL_MAIN_CF,
            "relayhost": f"[127.0.0.1]:{self.sink_port}",
            "smtpd_tls_chain_files": str(chain),
            **self.main_cf,
        }

    def start(self) -> None:
        """Write the configuration and start. Raises RuntimeError with Postfix's output."""
        self.write_main_cf()
        (self.config / "master.cf").write_text(self.master_cf)
        self._make_queue()
        master = os.path.join(daemon_directory(), "master")
        try:
            if self._failure([master, "-w", "-c", str(self.config)]) is not None:
                self.postfix("start")  # which says why, as master(8) does not
        finally:  # stop() must find the processes that a failed start leaves
            self.note_group()

    def note_group(self) -> None:
        """Have `stop` and `processes` know the processes of the master(8) that runs now."""
        with contextlib.suppress(FileNotFoundError):
            self._groups.add(self.master_pid())

    def _make_queue(self) -> None:
        """Make the directories that Postfix wants, as `postfix start` does."""
        for name, (owner, group, mode) in QUEUE.items():
            directory = self.queue / name
            directory.mkdir(exist_ok=True)
            shutil.chown(directory, owner, group)
            directory.chmod(mode)

    def stop(self) -> list[str]:
        """Stop and wait until all processes are gone; return the names of those killed."""
        if any(process.pid in self._groups for process in self.processes()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may be dying
                os.kill(self.master_pid(), signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.processes(), STOP_LIMIT)
        names = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(process.name())
                process.kill()
        wait_until(lambda: not self.processes(), STOP_LIMIT)
        return names

    def postfix(self, command: str) -> None:
        """Run `postfix -c DIR COMMAND`. Raises RuntimeError if it fails."""
        try:
            self.run("postfix", command)
        except RuntimeError as error:
            raise RuntimeError(f"{error}{self.log()}") from None

    def run(self, program: str, *arguments: str) -> None:
        """Run `PROGRAM -c DIR ARGUMENTS`, a program of Postfix. Raises RuntimeError if it fails."""
        failure = self._failure([program, "-c", str(self.config), *arguments])
        if failure is not None:
            raise RuntimeError(f"{program} {' '.join(arguments)} failed\n{failure}")

    def _failure(self, command: list[str]) -> str | None:
        """Run a command; return None, or what it printed if it failed."""
        with tempfile.TemporaryFile("w+") as output:  # no pipe: master(8) could keep it open
            run = subprocess.run(
                command,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=COMMAND_LIMIT,
            )
            output.seek(0)
            return output.read() if run.returncode else None

    def master_pid(self) -> int:
        """Return the process id of master(8)."""
        return int((self.queue / "pid" / "master.pid").read_text())

    def processes(self) -> list[psutil.Process]:
        """Return all live processes of this system, orphans of a killed master(8) too."""
        return [p for p in psutil.process_iter() if live_group_of(p) in self._groups]

    def inject(self, recipient: str = "someone@destination.test") -> str:
        """Submit a message by SMTP; return its queue id."""
        with smtplib.SMTP("127.0.0.1", self.port, "client.test", timeout=30) as smtp:
            smtp.ehlo()
            smtp.mail("sender@origin.test")
            smtp.rcpt(recipient)
            code, reply = smtp.data("Subject: test\r\n\r\nHello.\r\n")
        queued = re.search(rb"queued as (\w+)", reply)
        if code != 250 or queued is None:
            raise RuntimeError(f"message refused: {code} {reply!r}")
        return queued[1].decode()

    def deliver(self, count: int = 1) -> None:
        """Send messages, each delivered to the sink before the next is sent."""
        for _ in range(count):
            self.wait_log(rf"/smtp\[\d+\]: {self.inject()}: .*status=sent")


def self_signed(name: str) -> bytes:
    """Return a key and a self-signed certificate for smtpd_tls_chain_files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + 30 * day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = key.private_bytes(pem, pkcs8, serialization.NoEncryption())
    return private + certificate.public_bytes(pem)


def _free_ports(count: int) -> list[int]:
    """Return unused ports on loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
