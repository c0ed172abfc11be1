"""The digest of smtpd's TLS policy: what changes it, and what does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tlsmgr.config.load import load
from tlsmgr.config.policy_digest import changes, read

MAIN_CF = """\
myhostname = mail.test
level = may
smtpd_tls_security_level = $level
smtpd_tls_CAfile = ${config_directory}/ca.pem
smtpd_tls_CApath = ${config_directory}/certs
smtpd_tls_chain_files = /etc/chain.pem
smtpd_tls_loglevel = 1
smtpd_tls_session_cache_timeout = 3600s
smtp_tls_security_level = dane
tls_high_cipherlist = HIGH
"""
MASTER_CF = """\
# a comment
smtp      inet  n       -       y       -       -       smtpd
submission inet n       -       y       -       -       smtpd
  -o syslog_name=postfix/submission
  -o smtpd_tls_security_level=encrypt
  -o { smtpd_tls_ask_ccert = $ask }
  -osmtpd_tls_req_ccert=no -v
  -o smtpd_tls_auth_only=$mine -o mine=encrypt
relay     unix  -       -       y       -       -       smtp -o smtpd_tls_ask_ccert=yes
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A configuration directory."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "0a1b2c3d.0").write_text("one")
    (tmp_path / "ca.pem").write_text("CA")
    (tmp_path / "main.cf").write_text(MAIN_CF)
    (tmp_path / "master.cf").write_text(MASTER_CF)
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    return tmp_path


def digests_of(place: Path) -> dict[str, str]:
    """Those of the configuration in that directory."""
    warnings: list[str] = []
    conf = load(str(place), warnings.append)
    assert warnings == []
    return read(conf).digests


def replacing(name: str, old: str, new: str) -> Callable[[Path], object]:
    def replace(place: Path) -> None:
        text = (place / name).read_text()
        assert old in text
        (place / name).write_text(text.replace(old, new, 1))
        os.utime(place / name, (1, 1))

    return replace


def adding(name: str, text: str) -> Callable[[Path], object]:
    return replacing(name, "\n", f"\n{text}\n")


LEVEL = "smtpd_tls_security_level"
CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda place: None, []),
    "a value": (replacing("main.cf", "= HIGH", "= MEDIUM"), ["tls_high_cipherlist"]),
    "what it refers to": (replacing("main.cf", "level = may", "level = encrypt"), [LEVEL]),
    "a new parameter": (
        adding("main.cf", "smtpd_tls_req_ccert = yes"),
        ["smtpd_tls_req_ccert"],
    ),
    "one that is gone": (
        replacing("main.cf", "tls_high_cipherlist = HIGH\n", ""),
        ["tls_high_cipherlist"],
    ),
    "an old name": (adding("main.cf", "smtpd_use_tls = yes"), ["smtpd_use_tls"]),
    "the CAs": (
        lambda place: (place / "ca.pem").write_text("another CA"),
        ["the content of smtpd_tls_CAfile"],
    ),
    "no CAs": (lambda place: (place / "ca.pem").unlink(), ["the content of smtpd_tls_CAfile"]),
    "a CA is gone": (
        lambda place: (place / "certs" / "0a1b2c3d.0").unlink(),
        ["the content of smtpd_tls_CApath"],
    ),
    "an option of a service": (
        replacing("master.cf", f"{LEVEL}=encrypt", f"{LEVEL}=may"),
        [f"{LEVEL} of submission in master.cf"],
    ),
    "an option in braces": (
        replacing("master.cf", "{ smtpd_tls_ask_ccert = $ask }", "{ smtpd_tls_ask_ccert = yes }"),
        ["smtpd_tls_ask_ccert of submission in master.cf"],
    ),
    "what it refers to there": (
        adding("main.cf", "ask = yes"),
        ["smtpd_tls_ask_ccert of submission in master.cf"],
    ),
    "a short option": (
        replacing("master.cf", "req_ccert=no", "req_ccert=yes"),
        ["smtpd_tls_req_ccert of submission in master.cf"],
    ),
    "a name of one's own there": (
        replacing("master.cf", "mine=encrypt", "mine=may"),
        ["smtpd_tls_auth_only of submission in master.cf"],
    ),
    "what main.cf refers to there": (
        adding("master.cf", "smtps inet n - y - - smtpd -o level=encrypt"),
        [f"{LEVEL} of smtps in master.cf"],
    ),
    "an option of another line for that name": (
        replacing(
            "master.cf",
            "submission inet",
            f"submission unix n - y - - smtpd -o {LEVEL}=may\nsubmission inet",
        ),
        [f"{LEVEL} of submission in master.cf"],
    ),
    "an option that is gone": (
        replacing("master.cf", f"  -o {LEVEL}=encrypt\n", ""),
        [f"{LEVEL} of submission in master.cf"],
    ),
    "no master.cf": (
        lambda place: (place / "master.cf").unlink(),
        [
            "smtpd_tls_ask_ccert of submission in master.cf",
            "smtpd_tls_auth_only of submission in master.cf",
            "smtpd_tls_req_ccert of submission in master.cf",
            f"{LEVEL} of submission in master.cf",
        ],
    ),
    "a client's parameter": (replacing("main.cf", "= dane", "= may"), []),
    "another chain file": (replacing("main.cf", "/etc/chain.pem", "/etc/new.pem"), []),
    "a certificate": (adding("main.cf", "smtpd_tls_eccert_file = /etc/new.pem"), []),
    "a log level": (replacing("main.cf", "loglevel = 1", "loglevel = 2"), []),
    "a timeout": (replacing("main.cf", "3600s", "1h"), []),
    "a source of entropy": (adding("main.cf", "tls_random_bytes = 64"), []),
    "another service's option": (replacing("master.cf", "ask_ccert=yes", "ask_ccert=no"), []),
    "a comment": (replacing("master.cf", "# a comment", "# other"), []),
    "another option": (replacing("master.cf", "postfix/submission", "postfix/x"), []),
    "how it is written": (replacing("main.cf", "= $level", "=  ${level}"), []),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_changes_it(place: Path, case: str) -> None:
    change, expected = CHANGES[case]
    before = digests_of(place)
    change(place)
    assert changes(before, digests_of(place)) == expected


def test_where_it_is(place: Path) -> None:
    adding("master.cf", "smtps inet n - y - - smtpd -o smtpd_tls_CAfile=/etc/other.pem")(place)
    warnings: list[str] = []
    assert read(load(str(place), warnings.append)).files == [
        f"{place}/main.cf",
        f"{place}/master.cf",
        f"{place}/ca.pem",
        f"{place}/certs",
        "/etc/other.pem",
    ]


def test_values_that_can_not_be_used(place: Path) -> None:
    """They are another program's business."""
    adding("main.cf", "smtpd_tls_x = ${\nsmtpd_tls_y = $smtpd_tls_y")(place)
    adding("master.cf", "smtp inet n - y - - smtpd -o -o { -o {{ -o smtpd_tls_z -o")(place)
    before = digests_of(place)
    assert {"smtpd_tls_x", "smtpd_tls_y"} <= before.keys()
    assert changes(before, digests_of(place)) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_files_without_an_end(place: Path, make: Callable[[Path], None]) -> None:
    before = digests_of(place)
    (place / "ca.pem").unlink()
    make(place / "ca.pem")
    assert changes(before, digests_of(place)) == ["the content of smtpd_tls_CAfile"]
