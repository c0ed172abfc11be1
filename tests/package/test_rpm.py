"""The rpm: built twice, installed by rpm in a fresh Debian with its Postfix, removed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import debian_root
from support.checkout import CHECKOUT
from support.debian_root import CONFIGURE, SEND, DebianRoot

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="needs rpmbuild: apt install rpm"),
]
# Debian's rpm wants to be told that it may, and knows none of Debian's packages.
RPM = "rpm --force-debian --nodeps"


@pytest.fixture(scope="module")
def rpm() -> Path:
    """The .rpm of this checkout."""
    return debian_root.build("rpm")


def test_two_builds_are_the_same(rpm: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.rpm"
    shutil.copyfile(rpm, first)
    assert debian_root.build("rpm").read_bytes() == first.read_bytes()


def test_rpmlint_finds_no_error(rpm: Path) -> None:
    if shutil.which("rpmlint") is None:
        pytest.skip("needs rpmlint: apt-get install rpmlint")
    filters = CHECKOUT / "scripts/package/rpm/tlsmgr.rpmlintrc"
    spec = CHECKOUT / "build/rpm/tlsmgr.spec"
    done = subprocess.run(
        ["rpmlint", "-r", filters, rpm, spec], stdout=subprocess.PIPE, text=True, timeout=300
    )
    assert not re.findall(r"^.*: E: .*$", done.stdout, re.MULTILINE), done.stdout


def test_mail_with_resumption_through_it(fresh: DebianRoot, rpm: Path, tmp_path: Path) -> None:
    """Installed, installed once more as an upgrade is, and removed, which leaves nothing."""
    root = fresh.copy(tmp_path / "root")
    root.run("apt-get -qq -y --no-install-recommends install rpm", network=True)
    shutil.copyfile(rpm, root.path / "tlsmgr.rpm")
    said = root.run(
        f"set -e; {CONFIGURE} {SEND} cp /etc/postfix/master.cf /tmp/; {RPM} -i /tlsmgr.rpm;"
        "cmp /etc/postfix/master.cf /tmp/master.cf; postfix start; tlsmgr-postfix enable;"
        "tlsmgr-postfix status; send 1; send 2; rpm -V --nodeps tlsmgr; echo upgrade;"
        f"{RPM} -U --force /tlsmgr.rpm; send 3; cat /var/log/mail.log; echo removal;"
        "rpm -e --nodeps tlsmgr; cmp /etc/postfix/master.cf /tmp/master.cf; echo rest;"
        "find / -xdev -name '*tlsmgr*' -not -path '/proc/*' -not -path '/usr/share/man/*'"
    )
    before, upgrade, removal, rest = re.split("^(?:upgrade|removal|rest)$", said, flags=re.M)
    assert "\n/etc/postfix: ours serves\n" in before
    assert "reloaded Postfix; running: tlsmgr-prefork, pid " in upgrade
    assert upgrade.count("Reusing old session") == 2
    assert not re.search(r"tlsmgr\[\d+\]: (warning|error|fatal|panic)", upgrade)
    assert "reloaded Postfix; running: tlsmgr, pid " in removal
    assert set(rest.split()) == {
        "/tlsmgr.rpm", "/usr/lib/postfix/sbin/tlsmgr", "/var/spool/postfix/private/tlsmgr"
    }  # fmt: skip
