"""The Debian package is upgraded under load, and no client of Postfix notices."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from support import debian_root
from support.checkout import CHECKOUT
from support.debian_root import CONFIGURE, DebianRoot

import tlsmgr

pytestmark = pytest.mark.long

NEXT = "99.0"
SLOWEST = 5.0  # seconds; one that has to try again waits for 1 s, and a lost one for much longer


@pytest.fixture(scope="session")
def next_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb of the same program with another version."""
    checkout = tmp_path_factory.mktemp("next") / "tlsmgr"
    without = shutil.ignore_patterns(".*", "build", "dist", "tests", "__pycache__")
    shutil.copytree(CHECKOUT, checkout, symlinks=True, ignore=without)
    module = checkout / "tlsmgr/__init__.py"
    mine = f'__version__ = "{tlsmgr.__version__}"'
    text = module.read_text()
    assert mine in text
    module.write_text(text.replace(mine, f'__version__ = "{NEXT}"'))
    return debian_root.build("deb", checkout)


def test_an_upgrade_loses_nothing(root: DebianRoot, next_package: Path) -> None:
    """Each connection has an smtpd process of its own, which asks for a seed and a ticket key."""
    shutil.copyfile(next_package, root.path / "next.deb")
    shutil.copyfile(CHECKOUT / "tests/support/resuming_client.py", root.path / "client.py")
    said = root.run(
        f"set -e; {CONFIGURE} postconf max_use=1; dpkg -i /tlsmgr.deb >/dev/null;"
        "postfix start; tlsmgr-postfix enable; socket=/var/spool/postfix/private/tlsmgr;"
        "echo sealed | tlsmgrctl --socket $socket update smtp some-id;"
        "python3.11 -I /client.py 10025 /ready /end & client=$!;"
        "until [ -e /ready ]; do kill -0 $client; sleep 0.1; done; sleep 2;"
        "tlsmgrctl status; dpkg -i /next.deb; tlsmgrctl status; sleep 2;"
        "touch /end; wait $client; tlsmgrctl --socket $socket lookup --raw smtp some-id;"
        "cat /var/log/mail.log; postfix stop"
    )
    assert re.findall(r"^tlsmgr (\S+), pid \d+: ", said, re.M) == [tlsmgr.__version__, NEXT]
    (result,) = re.findall(r"connections (\d+), resumed (\d+), longest ([\d.]+) s", said)
    assert result[0] == result[1] != "0", said
    assert float(result[2]) < SLOWEST, said
    assert "\nsealed\n" in said
    assert not re.search(r": (warning|error|fatal|panic): ", said), said
