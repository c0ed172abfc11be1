"""The Debian package: built twice, installed in a fresh Debian with its Postfix, removed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import debian_root
from support.debian_root import CONFIGURE, SEND, DebianRoot

pytestmark = pytest.mark.long

MOST_SPACE = 60_000  # KiB
INSTALL = "set -e; dpkg -i /tlsmgr.deb >/dev/null;"


def test_two_builds_are_the_same(package: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.deb"
    shutil.copyfile(package, first)
    assert debian_root.build("deb").read_bytes() == first.read_bytes()


def test_lintian_finds_no_error(package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian: apt-get install lintian")
    done = subprocess.run(
        ["lintian", "--allow-root", package], stdout=subprocess.PIPE, text=True, timeout=300
    )
    assert not [line for line in done.stdout.splitlines() if line.startswith("E:")], done.stdout
    assert done.returncode == 0


def test_two_commands_to_mail_with_resumption(root: DebianRoot) -> None:
    """Installing, which changes nothing of Postfix, and enable; both without a network."""
    said = root.run(
        f"set -e; {CONFIGURE} {SEND}"
        "cp /etc/postfix/master.cf /tmp/; dpkg -i /tlsmgr.deb;"
        "cmp /etc/postfix/master.cf /tmp/master.cf;"
        "postfix start; tlsmgr-postfix enable; tlsmgr-postfix status;"
        "send 1; send 2; dpkg --verify tlsmgr; du -sk /usr/lib/tlsmgr; cat /var/log/mail.log;"
        "postfix stop"
    )
    assert "\n/etc/postfix: ours serves\n" in said
    assert said.count("Reusing old session") == 1
    assert "??5??????" not in said  # of dpkg --verify
    assert int(re.findall(r"^(\d+)\t/usr/lib/tlsmgr$", said, re.MULTILINE)[0]) < MOST_SPACE
    assert not re.search(r"tlsmgr\[\d+\]: (warning|error|fatal|panic)", said)


def test_an_upgrade_reloads_and_a_removal_puts_stock_back(root: DebianRoot) -> None:
    said = root.run(
        f"{INSTALL} postconf -e maillog_file=/var/log/mail.log; cp /etc/postfix/master.cf /tmp/;"
        "postfix start; tlsmgr-postfix enable; echo upgrade; dpkg -i /tlsmgr.deb; echo removal;"
        "dpkg -r tlsmgr; cmp /etc/postfix/master.cf /tmp/master.cf; ls /usr/lib/postfix/sbin;"
        "ls /usr/lib; dpkg -P tlsmgr; echo rest; ls /var/lib/postfix /var/spool/postfix/pid;"
        "postfix stop"
    )
    before, upgrade, removal, rest = re.split(r"^(?:upgrade|removal|rest)$", said, flags=re.M)
    pids = [re.findall(r"running: tlsmgr-prefork, pid (\d+)", text) for text in (before, upgrade)]
    assert len(pids[0]) == len(pids[1]) == 1
    assert pids[0] != pids[1]
    assert re.search(r"reloaded Postfix; running: tlsmgr, pid \d+$", removal, re.MULTILINE)
    assert "\ntlsmgr-prefork\n" not in removal
    assert "\ntlsmgr\n" not in removal.partition("\nlocale")[2]
    assert "sessions" not in rest
    assert "tlsmgr-prefork" not in rest


def test_a_package_that_was_damaged_says_how_to_repair_it(root: DebianRoot) -> None:
    said = root.run(
        f"{INSTALL} rm -r /usr/lib/tlsmgr/.venv/lib/python*/site-packages/lmdb;"
        "tlsmgr-start 2>&1 && exit 1; tlsmgr-postfix enable 2>&1 && exit 1;"
        "tlsmgrctl report --plot x /dev/null 2>&1 && exit 1; exit 0"
    )
    cure = "to repair it: apt-get install --reinstall tlsmgr\n"
    assert re.search(rf"tlsmgr-start: fatal: /usr/lib/tlsmgr is damaged \(.*lmdb.*\); {cure}", said)
    assert re.search(
        rf"tlsmgr-postfix: fatal: /usr/lib/tlsmgr is damaged \(.*lmdb.*\); {cure}", said
    )
    assert "tlsmgrctl: fatal: the package does not have what this needs" in said


def test_in_a_container_with_a_read_only_root(root: DebianRoot) -> None:
    """No /dev/log, the mail log on standard output, the limits and capabilities of an engine."""
    root.run(f"{INSTALL} {CONFIGURE} postconf maillog_file=/dev/stdout; tlsmgr-postfix enable")
    kept = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service sys_chroot"
    capabilities = ",".join(("-all", *(f"+{name}" for name in kept.split())))
    said = root.run(
        f"ulimit -l 64; exec setpriv --bounding-set={capabilities} --inh-caps=-all sh -ec '"
        "! touch /etc/x; ! test -e /dev/log; postfix start-fg & "
        "until postfix status 2>/dev/null; do sleep 0.1; done;"
        "for i in 1 2 3; do echo text | sendmail -f root@a.test x@b.test; sleep 3; done;"
        "tlsmgr-postfix status; postfix stop; wait || :'",
        memory="run tmp",
        volumes="var/spool/postfix var/lib/postfix",
    )
    assert "/etc/postfix: ours serves\n" in said
    assert "Reusing old session" in said
