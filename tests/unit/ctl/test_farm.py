"""tlsmgrctl farm: the command itself, run as an operator runs it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.farm_secret import (
    DAY,
    EXAMPLE,
    EXAMPLE_DATE,
    EXAMPLE_KEY,
    at,
    file_text,
    today,
    write,
)
from support.settled_files import write_settled

from tlsmgr.ctl.farm import view
from tlsmgr.farm import secret_file
from tlsmgr.farm.secret import CLOCK_SKEW, expand, first_day, parse

T = 3600
NOON = at(f"{EXAMPLE_DATE} 12:00:00")
Run = subprocess.CompletedProcess[str]


def ctl(directory: Path, *arguments: str | Path) -> Run:
    return subprocess.run(
        [sys.executable, "-m", "tlsmgr.ctl.main", "farm", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "MAIL_CONFIG": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def expect_done(run: Run) -> None:
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def expect_failure(run: Run, reason: str) -> None:
    assert (run.returncode, run.stdout, run.stderr) == (1, "", f"tlsmgrctl: {reason}\n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The secret file of the configuration in tmp_path; there is none yet."""
    write_settled(
        tmp_path / "tlsmgr.cf", "tlsmgr_farm_secret_file = $config_directory/farm.secret\n"
    )
    return tmp_path / "farm.secret"


def test_new_then_show_then_advance(path: Path, tmp_path: Path) -> None:
    expect_done(ctl(tmp_path, "new", path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    before = int(time.time())
    shown = ctl(tmp_path)
    after = int(time.time())
    assert (shown.returncode, shown.stderr) == (0, "")
    secrets = secret_file.read(str(path), after // DAY)
    assert shown.stdout in {
        "".join(f"{line}\n" for line in view(str(path), secrets, T, now))
        for now in range(before, after + 1)
    }
    assert content.split()[-1] not in shown.stdout
    expect_done(ctl(tmp_path, "advance", path))
    assert path.read_text() == content, "on its first day there is nothing to advance"


def test_new_replaces_nothing(path: Path, tmp_path: Path) -> None:
    write(path, EXAMPLE)
    expect_failure(ctl(tmp_path, "new", path), f"{path}: File exists")
    assert path.read_text() == EXAMPLE


def test_advance(path: Path, tmp_path: Path) -> None:
    """The secret of the first day that is still needed, and those that are planned."""
    planned = file_text({"9999-12-31": bytes(range(32))})
    write(path, f"# comment\n{file_text({'2026-01-01': EXAMPLE_KEY})}{planned}")
    original = parse(path.read_bytes(), 10**6)
    before = int(time.time())
    expect_done(ctl(tmp_path, "advance", path))
    after = int(time.time())
    first, last = secret_file.read(str(path), after // DAY)
    assert first.day in {first_day(now - CLOCK_SKEW, T) for now in (before, after)}
    key = EXAMPLE_KEY
    for _ in range(first.day - original[0].day):
        key = expand(key, b"tlsmgr farm v1 next day", 32)
    assert first.key == key
    assert last == original[1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "tlsmgr.cf"]


def test_advance_keeps_what_long_lived_tickets_need(path: Path, tmp_path: Path) -> None:
    write(path, file_text({"2026-01-01": EXAMPLE_KEY}))
    write_settled(tmp_path / "main.cf", "smtpd_tls_session_cache_timeout = 20d\n")
    expect_done(ctl(tmp_path, "advance", path))
    now = int(time.time())
    (only,) = secret_file.read(str(path), now // DAY)
    assert only.day <= now // DAY - 10


def test_advance_without_tickets(path: Path, tmp_path: Path) -> None:
    write(path, file_text({"2026-01-01": EXAMPLE_KEY}))
    write_settled(tmp_path / "main.cf", "smtpd_tls_session_cache_timeout = 0\n")
    expect_done(ctl(tmp_path, "advance", path))
    now = int(time.time())
    (only,) = secret_file.read(str(path), now // DAY)
    assert only.day in (now // DAY, now // DAY - 1)
    expect_failure(ctl(tmp_path), "session tickets are off: smtpd_tls_session_cache_timeout = 0")


@pytest.mark.parametrize("arguments", [[], ["advance", "farm.secret"]], ids=["show", "advance"])
def test_a_bad_file_is_one_line_and_stays(path: Path, tmp_path: Path, arguments: list[str]) -> None:
    arguments = [str(tmp_path / word) if "." in word else word for word in arguments]
    expect_failure(ctl(tmp_path, *arguments), f"{path}: No such file or directory")
    text = file_text({today(): EXAMPLE_KEY})
    write(path, text, 0o644)
    reason = "other users have access to it (mode 0644); run chmod 600"
    expect_failure(ctl(tmp_path, *arguments), f"{path}: {reason}")
    write(path, f"{text}rubbish\n")
    reason = "line 2: expected a date and a secret in base64"
    expect_failure(ctl(tmp_path, *arguments), f"{path}: {reason}")
    assert path.read_text() == f"{text}rubbish\n"


def test_the_configuration(tmp_path: Path) -> None:
    reason = f"{tmp_path}/tlsmgr.cf: tlsmgr_farm_secret_file is not set"
    expect_failure(ctl(tmp_path), reason)
    write_settled(tmp_path / "main.cf", "smtpd_tls_session_cache_timeout = 5x\n")
    reason = "parameter smtpd_tls_session_cache_timeout: bad time value or unit: 5x"
    expect_failure(ctl(tmp_path), reason)
    (tmp_path / "main.cf").unlink()
    write_settled(tmp_path / "tlsmgr.cf", "tlsmgr_farm_secret_file = farm\n")
    run = ctl(tmp_path)
    assert run.returncode == 1
    assert 'not an absolute path: "farm"; using the default (empty)' in run.stderr


def test_what_is_shown() -> None:
    secrets = parse(f"{EXAMPLE}{file_text({'2026-12-24': bytes(range(32))})}".encode(), 10**6)
    assert view("/etc/postfix/farm.secret", secrets, T, NOON + 100) == [
        "secret file /etc/postfix/farm.secret",
        "ticket lifetime 3600 s, a key for each 1800 s",
        "2026-11-25 11:30:00  979467e6",
        "2026-11-25 12:00:00  93424e48  for new tickets",
        "2026-11-25 12:30:00  bf721f96  next",
        "another secret holds from 2026-12-24 on",
    ]


def test_what_is_missing_is_shown() -> None:
    lines = view("/f", parse(EXAMPLE.encode(), 10**6), T, at(f"{EXAMPLE_DATE} 00:00:00"))
    assert lines[2] == "2026-11-24 23:30:00  missing: no secret in the file holds on 2026-11-24"
    assert lines[3].endswith("  for new tickets")
