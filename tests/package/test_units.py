"""The units in a booted system: each directive as the real systemd enforces it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.debian_root import DebianRoot

UNITS = CHECKOUT / "scripts/package/systemd"
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)

DROP_IN = "/etc/systemd/system/tlsmgr-metrics.service.d/postfix.conf"
PROBE = """
exec 2>&1
ask() { tlsmgrctl --socket /run/tlsmgr/tlsmgr seed 32; }
main_pid() { systemctl show --property MainPID --value tlsmgr.service; }
dpkg -i /tlsmgr.deb >/dev/null
echo "state: $(systemctl is-active tlsmgr.socket tlsmgr.service tlsmgr-metrics.service | xargs)"
systemd-analyze verify --man=no /usr/lib/systemd/system/tlsmgr* && echo 'verify: clean'
systemctl --quiet enable --now tlsmgr.socket
echo "seed: $(ask)"
echo "state: $(systemctl is-active tlsmgr.socket tlsmgr.service | xargs)"
tlsmgrctl --socket /run/tlsmgr/tlsmgr status | head -n 1
systemctl start tlsmgr-metrics.service
tlsmgrctl farm new /etc/postfix/farm.secret
mkdir /etc/systemd/system/tlsmgr.service.d
printf '[Service]\\nLoadCredential=farm.secret:/etc/postfix/farm.secret\\n' \\
    >/etc/systemd/system/tlsmgr.service.d/farm.conf
echo 'tlsmgr_farm_secret_file = /run/credentials/tlsmgr.service/farm.secret' >/etc/tlsmgr/tlsmgr.cf
systemctl daemon-reload
systemctl restart tlsmgr.service
systemctl start tlsmgr-farm-advance.service && echo 'advance: done'
systemctl is-active tlsmgr-metrics.service
before=$(main_pid)
kill -STOP "$before"
until [ "$(main_pid)" != "$before" ] && [ "$(main_pid)" != 0 ]; do sleep 1; done
echo "after the watchdog: $(ask)"
systemctl start postfix.service
tlsmgr-postfix enable >/dev/null
systemctl stop tlsmgr-metrics.service
install -D -m 644 /postfix.conf /etc/systemd/system/tlsmgr-metrics.service.d/postfix.conf
systemctl daemon-reload
systemctl --quiet enable --now tlsmgr-metrics.service
until python3.11 /get.py >/tmp/metrics 2>/dev/null; do sleep 0.1; done
grep '^postfix_tlsmgr_build_info' /tmp/metrics
before=$(main_pid)
dpkg -i /tlsmgr.deb >/dev/null
echo "after the upgrade: $(ask)"
[ "$(main_pid)" = "$before" ] && echo 'reload: in place'
dpkg -P tlsmgr >/dev/null
echo "state: $(systemctl is-active tlsmgr.socket tlsmgr.service tlsmgr-metrics.service | xargs)"
echo "left: $(systemctl list-unit-files | grep -c tlsmgr)"
journalctl --no-pager --unit 'tlsmgr*'
"""
GET = """
from urllib.request import urlopen

with urlopen("http://127.0.0.1:9315/metrics") as answer:
    print(answer.read().decode())
"""


def drop_in() -> str:
    """Return what tlsmgrctl(1) has for the metrics of the tlsmgr under Postfix."""
    page = (CHECKOUT / "man/tlsmgrctl.1").read_text()
    _, found, rest = page.partition(f"\n# {DROP_IN}\n")
    assert found
    return rest.partition("\n.Ed\n")[0]


@needs_analyze
@pytest.mark.parametrize("path", sorted(UNITS.glob("*.service")), ids=lambda path: path.stem)
def test_a_unit_has_little_that_an_attacker_could_use(path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    (score,) = re.findall(r"level for \S+: ([\d.]+)", done.stdout)
    assert float(score) <= 1.5 if "farm" in path.name else float(score) <= 1.0, done.stdout


@pytest.mark.long
def test_the_units_in_a_booted_system(root: DebianRoot, tmp_path: Path) -> None:
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("needs systemd-nspawn: apt-get install systemd-container")
    (root.path / "postfix.conf").write_text(drop_in())
    (root.path / "get.py").write_text(GET)
    said = root.boot(PROBE)
    assert re.findall("^state: (.*)", said, re.MULTILINE) == [
        "inactive inactive inactive",
        "active active",
        "inactive inactive inactive",
    ], said
    assert "verify: clean\n" in said
    assert len(re.findall(r"^(?:seed|after the \w+): \S{44}$", said, re.MULTILINE)) == 3, said
    assert re.search(r"^tlsmgr \S+, pid \d+: serving$", said, re.MULTILINE), said
    assert "advance: done\n" in said
    assert "reload: in place\n" in said, said
    assert "serving on unix:/run/tlsmgr-metrics/socket" in said
    assert "keys are derived from /run/credentials/tlsmgr.service/farm.secret" in said
    assert re.search(r'^postfix_tlsmgr_build_info.*config_directory="/etc/postfix"', said, re.M), (
        said
    )
    assert "tlsmgr.service: Watchdog timeout" in said
    assert "left: 0\n" in said
    assert not re.search(r"tlsmgr\[\d+\]: (error|fatal|panic)", said)
