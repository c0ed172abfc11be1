"""tlsmgrctl check on real files and Postfix's own programs; the commands that it names are run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.postfix_instance import postfix_missing
from support.postfix_sandbox import daemon_directory
from support.status_samples import ControlSocket, busy

from tlsmgr.ctl.check import examine
from tlsmgr.ctl.check_facts import gather
from tlsmgr.ctl.check_table import CHECKS
from tlsmgr.ctl.instance import find
from tlsmgr.install.launcher import MARK
from tlsmgr.status_object import Status

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="looks at files of root and mail_owner")
COMMAND = [sys.executable, "-m", "tlsmgr.ctl.main", "check"]
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class Host:
    """The directory of a Postfix that has ours enabled, and does not run; nothing is wrong."""

    control: ControlSocket

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("etc", "queue/private", "daemon", "data", "bin"):
            (directory / name).mkdir(parents=True)
        os.symlink(f"{daemon_directory()}/master", directory / "daemon/master")
        (directory / "daemon/tlsmgr-prefork").write_text(MARK)
        self.stub("postfix")
        self.write(
            "main.cf",
            f"queue_directory = {directory}/queue\n"
            f"data_directory = {directory}/data\n"
            f"daemon_directory = {directory}/daemon\n"
            "smtp_tls_security_level = may\n"
            "smtp_tls_session_cache_database = btree:$data_directory/smtp_scache\n",
        )
        self.write("master.cf", "tlsmgr unix - - y 1000? 1 tlsmgr-prefork\n")

    @property
    def socket(self) -> Path:
        return self.directory / "queue/private/tlsmgr"

    def stub(self, name: str) -> None:
        """Put a program that does nothing in the path."""
        (self.directory / "bin" / name).write_text("#!/bin/sh\n")
        (self.directory / "bin" / name).chmod(0o755)

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        (self.directory / "etc" / name).write_text(text)
        (self.directory / "etc" / name).chmod(mode)

    def append(self, name: str, text: str) -> None:
        with open(self.directory / "etc" / name, "a") as file:
            file.write(text)

    def age(self) -> None:
        """Make the files old: Postfix waits up to two seconds before it reads a new one."""
        for path in (self.directory / "etc").iterdir():
            os.utime(path, (0, 0))

    def check(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.age()
        return subprocess.run(
            [*COMMAND, "-c", str(self.directory / "etc"), *arguments],
            cwd=CHECKOUT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def findings(self) -> dict[str, str]:
        """The commands by check."""
        self.age()
        instance = find(ENVIRONMENT, str(self.directory / "etc"))
        facts = gather(instance, int(time.time()) // 86400)
        return {name: finding.command for name, finding in examine(facts)}

    def run(self, command: str) -> None:
        """Run a command as root's shell would; Postfix is not reloaded."""
        path = f"{self.directory}/bin:{ENVIRONMENT['PATH']}"
        subprocess.run(
            ["/bin/sh", "-c", command],
            env={**ENVIRONMENT, "PATH": path},
            cwd=self.directory,
            check=True,
            timeout=60,
        )


def calm(seconds: int) -> Status:
    """The status of a daemon with which nothing is wrong."""
    return replace(busy(seconds), caches={})


@pytest.fixture(scope="module")
def postfix() -> None:
    if reason := postfix_missing("btree"):
        pytest.skip(reason)


@pytest.fixture
def host(tmp_path: Path, postfix: None) -> Iterator[Host]:
    host = Host(tmp_path)
    with ControlSocket(host.socket, calm) as host.control:
        yield host


def test_the_object_for_programs(host: Host) -> None:
    host.append("main.cf", "smtp_tls_session_cache_database =\n")
    run = host.check("--json")
    assert (run.returncode, run.stderr) == (1, "")
    printed = json.loads(run.stdout)
    assert printed["config_directory"] == f"{host.directory}/etc"
    assert printed["socket"] == str(host.socket)
    assert printed["checks"] == [check.name for check in CHECKS]
    (finding,) = printed["findings"]
    assert finding["check"] == "client-cache"
    assert set(finding) == {"check", "what", "why", "command"}


def test_nothing_is_wrong(host: Host) -> None:
    run = host.check()
    total = f"{host.directory}/etc: {len(CHECKS)} checks, nothing to mend\n"
    assert (run.returncode, run.stdout, run.stderr) == (0, total, "")


MENDED = [
    ("process-limit", "master.cf", "tlsmgr unix - - y 1000? - tlsmgr-prefork\n"),
    ("unknown-parameter", "tlsmgr.cf", "tlsmgr_workers = 3\n"),
    ("unknown-parameter", "tlsmgr.cf", "frobnicate = 3\n\n   4\n# end\nlmtp_tls_loglevel_x = 1"),
    ("unknown-parameter", "tlsmgr.cf", "mydomain = example.org\n"),
    ("misplaced-parameter", "main.cf", "tlsmgr_worker_processes = 3\n"),
    ("bad-value", "tlsmgr.cf", "tlsmgr_statistics_interval = \n  soon\nsmtp_x = 1"),
    ("bad-value", "tlsmgr.cf", "tlsmgr_farm_store = http://host\n"),
    ("bad-value", "tlsmgr.cf", "tlsmgr_farm_store = redis://h\ntlsmgr_farm_caches = smpt, smtp\n"),
    ("server-cache", "main.cf", "smtpd_tls_session_cache_database = btree:/a/b\n"),
    ("client-cache", "main.cf", "smtp_tls_session_cache_database =\n"),
    ("cache-type", "main.cf", "lmtp_tls_session_cache_database = proxy:btree:/a\n"),
    ("timeout", "main.cf", "smtpd_tls_session_cache_timeout = 2d\n"),
    ("timeout", "main.cf", "smtp_tls_session_cache_timeout = 2d\n"),
]


@pytest.mark.parametrize(("name", "file", "text"), MENDED)
def test_the_command_mends_it(host: Host, name: str, file: str, text: str) -> None:
    if file == "master.cf":
        host.write(file, text)
    else:
        host.append(file, text)
    assert name in host.findings()
    for _ in range(3):  # a file may have several mistakes of one kind
        found = host.findings()
        if name not in found:
            break
        host.run(found[name])
    assert name not in host.findings()
    if name == "misplaced-parameter":
        assert "tlsmgr_worker_processes = 3" in (host.directory / "etc/tlsmgr.cf").read_text()


def test_limits_are_raised(host: Host) -> None:
    """The sample's smtp cache has evicted 3 sessions; the oldest is 1800 s old, of 1 h."""
    host.control.answer = busy
    host.append("tlsmgr.cf", "smtp_tls_session_cache_size_limit = 64M")
    found = host.findings()
    assert set(found) == {"cache-limit"}
    host.run(found["cache-limit"])
    text = (host.directory / "etc/tlsmgr.cf").read_text()
    assert (
        text
        == "#smtp_tls_session_cache_size_limit = 64M\nsmtp_tls_session_cache_size_limit = 192M\n"
    )


def test_files_that_are_too_open(host: Host) -> None:
    host.write("tlsmgr.cf", "", 0o666)
    sessions = host.directory / "data/smtp_scache.sessions"
    sessions.write_text("")
    sessions.chmod(0o644)
    found = host.findings()
    assert set(found) == {"open-configuration", "open-sessions"}
    for command in found.values():
        host.run(command)
    assert host.findings() == {}


def test_the_secret_of_a_farm(host: Host) -> None:
    secret = host.directory / "etc/farm.secret"
    host.append("tlsmgr.cf", "tlsmgr_farm_secret_file = $config_directory/farm.secret\n")
    assert set(host.findings()) == {"farm-secret"}
    run = [*COMMAND[:-1], "farm", "new", str(secret)]
    subprocess.run(run, cwd=CHECKOUT, check=True, timeout=60)
    assert host.findings() == {}
    secret.chmod(0o644)
    host.run(host.findings()["farm-secret"])
    assert host.findings() == {}


def test_a_main_cf_that_cannot_be_read(host: Host) -> None:
    host.append("main.cf", "smtpd_tls_session_cache_timeout = 3x\n")
    assert set(host.findings()) == {"configuration"}
    assert "smtpd_tls_session_cache_timeout" in host.check().stdout


def test_the_launcher_is_missing(host: Host) -> None:
    (host.directory / "daemon/tlsmgr-prefork").unlink()
    assert set(host.findings()) == {"launcher"}


def test_options_in_master_cf_count(host: Host) -> None:
    host.append("main.cf", "smtp_tls_session_cache_database =\n")
    option = "  -o smtp_tls_session_cache_database=btree:$data_directory/x\n"
    host.append("master.cf", option)
    assert host.findings() == {}


def test_a_directory_without_postfix(tmp_path: Path) -> None:
    (tmp_path / "tlsmgr.cf").write_text("tlsmgr_worker_processes = many\n")
    run = subprocess.run(
        [*COMMAND, "-c", tmp_path, "--socket", tmp_path / "s"],
        cwd=CHECKOUT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert f"# {CHECKOUT}/scripts/tlsmgr-start -c {tmp_path}\n" in run.stdout
    assert f"# sed -i '1s/^/#/' {tmp_path}/tlsmgr.cf\n" in run.stdout


def test_the_configuration_of_a_daemon_started_by_hand(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/tlsmgr.cf").write_text("tlsmgr_worker_processes = many\n")
    (tmp_path / "conf/main.cf").write_text(
        "smtp_tls_session_cache_database = btree:$data_directory/smtp_scache\n"
    )
    service = tmp_path / "tlsmgr/private/tlsmgr"
    service.parent.mkdir(parents=True)
    service.touch()
    sessions = tmp_path / "tlsmgr/smtp_scache.sessions"
    sessions.touch(0o644)

    def status(seconds: int) -> Status:
        return replace(calm(seconds), config_directory=str(tmp_path / "conf"))

    with ControlSocket(service, status):
        run = subprocess.run(
            COMMAND,
            cwd=CHECKOUT,
            env={**ENVIRONMENT, "MAIL_CONFIG": "/nonexistent", "XDG_STATE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (run.returncode, run.stderr) == (1, "")
    assert f"# sed -i '1s/^/#/' {tmp_path}/conf/tlsmgr.cf\n" in run.stdout
    assert run.stdout.endswith(f"\n{tmp_path}/conf: {len(CHECKS)} checks, 2 things to mend\n")
    assert f"# chmod 600 {sessions}\n" in run.stdout


def test_without_a_postfix_that_has_ours_the_default_one_is_looked_at(host: Host) -> None:
    """An administrator who asks why nothing resumes learns that ours is not enabled."""
    host.write("master.cf", "tlsmgr unix - - y 1000? 1 tlsmgr\n")
    host.age()
    run = subprocess.run(
        COMMAND,
        cwd=CHECKOUT,
        env={**ENVIRONMENT, "MAIL_CONFIG": f"{host.directory}/etc", "XDG_STATE_HOME": "/none"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout.startswith("enabled: The tlsmgr service in")
    assert "master.cf runs tlsmgr, not tlsmgr-prefork." in " ".join(run.stdout.split())
