"""debian_root - a fresh Debian system in a directory, and commands in it.

debootstrap makes it, from the mirror that debootstrap knows; Postfix and Python come from there.
Commands run in namespaces of their own: no process, no mount and no network is shared with the
host, and all of it is gone when the command ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

RELEASE = "bookworm"
PACKAGES = ("postfix", "python3.11", "systemd", "systemd-sysv")
TIME_LIMIT = 600.0  # seconds for one command

ENTER = """\
set -e
[ "$1" = with-network ] || ip link set lo up
mount --bind "$0" "$0"
mount -t proc proc "$0/proc"
mount -t tmpfs -o size=64m shm "$0/dev/shm"
for directory in $3; do mount -t tmpfs tmpfs "$0/$directory"; done
for directory in $4; do mount --bind "$0/$directory" "$0/$directory"; done
[ -z "$3" ] || mount -o remount,bind,ro "$0"
exec chroot "$0" /bin/sh -c "$2"
"""

# Scripts for a root: let Postfix send its mail to itself over TLS; a command that sends a mail.
CONFIGURE = """
postconf -e maillog_file=/var/log/mail.log 'relayhost=[127.0.0.1]:10025' myhostname=a.test \\
    smtp_tls_security_level=encrypt smtp_tls_loglevel=2
postconf -M '10025/inet=10025 inet n - n - - smtpd'
postconf -P 10025/inet/content_filter=discard: 10025/inet/smtpd_tls_security_level=encrypt
"""
SEND = """
send() { # NUMBER: the mail that this is
    echo text | sendmail -f root@a.test x@b.test
    tries=0
    until [ "$(grep -c 'postfix/smtp\\[.*status=sent' /var/log/mail.log)" -ge "$1" ]; do
        [ $((tries += 1)) -lt 300 ] || { cat /var/log/mail.log; exit 1; }
        sleep 0.1
    done
}
"""


@dataclass(frozen=True)
class DebianRoot:
    """The directory with the system."""

    path: Path

    def run(
        self, script: str, *, network: bool = False, volumes: str = "", memory: str = ""
    ) -> str:
        """Run the script in it; return what it printed. AssertionError: it failed.

        With ``memory``, directories for which there is an empty one in memory, all but these and
        the ``volumes`` is read-only.
        """
        kinds = ["--mount", "--pid", "--fork", *([] if network else ["--net"])]
        mode = "with-network" if network else ""
        command = ["unshare", *kinds, "sh", "-c", ENTER, str(self.path), mode, script]
        done = subprocess.run(
            [*command, memory, volumes],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def boot(self, script: str) -> str:
        """Boot it with systemd, run the script as a service, return what that printed."""
        (self.path / "probe.sh").write_text(script)
        unit = self.path / "etc/systemd/system/probe.service"
        unit.write_text(
            "[Service]\nType=oneshot\nExecStart=/bin/sh -e /probe.sh\n"
            "StandardOutput=file:/probe.out\nStandardError=inherit\n"
            "ExecStopPost=/bin/systemctl --force --no-block poweroff\n"
        )
        wants = self.path / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "probe.service").symlink_to("../probe.service")
        command = ["systemd-nspawn", "--directory", str(self.path), "--register=no"]
        command += ["--keep-unit", "--private-network", "--boot"]
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=TIME_LIMIT,
        )  # fmt: skip
        return (self.path / "probe.out").read_text()

    def copy(self, path: Path) -> DebianRoot:
        """Return a copy in a directory that does not exist yet."""
        subprocess.run(["cp", "--archive", "--reflink=auto", self.path, path], check=True)
        return DebianRoot(path)


def make(path: Path) -> DebianRoot:
    """Make one with Postfix. Skips the test where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("makes a Debian system: needs root")
    for program, package in (("debootstrap", "debootstrap"), ("dh", "debhelper")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install {package}")
    command = ["debootstrap", "--variant=minbase", RELEASE, str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=TIME_LIMIT)
    root = DebianRoot(path)
    names = " ".join(PACKAGES)
    root.run(f"apt-get -qq update; apt-get -qq -y --no-install-recommends install {names}",
        network=True)  # fmt: skip
    return root


def build(kind: str, checkout: Path = CHECKOUT) -> Path:
    """Build a package of a checkout; return its path."""
    done = subprocess.run(
        [checkout / "scripts/tlsmgr-package", kind],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=TIME_LIMIT,
    )
    return Path(done.stdout.splitlines()[-1])
