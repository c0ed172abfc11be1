"""The table of checks: nothing to say about a good host, and a case for each row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.status_samples import busy, degraded

from tlsmgr.config.caches import CacheSettings
from tlsmgr.ctl.check import examine, lines
from tlsmgr.ctl.check_facts import Facts, FileFact, Line, SharedMemory
from tlsmgr.ctl.check_table import CHECKS, Finding
from tlsmgr.ctl.instance import Instance
from tlsmgr.install.instance import Service
from tlsmgr.install.launcher import NAME, Note
from tlsmgr.status_object import IN_PLACE, SERVING, Cache, Status

MIB = 1 << 20
SERVICE = Service("tlsmgr", True, True, "1", NAME, "")
SMTP = CacheSettings("smtp", "btree:/d/smtp", 3600, 128 * MIB, 0, False)
NO_SMTPD = CacheSettings("smtpd", "", 3600, 128 * MIB, 0, False)


def serving(**caches: Cache) -> Status:
    return replace(busy(60), caches=caches)


GOOD = Facts(
    instance=Instance("/q/private/tlsmgr", "/etc/postfix", True),
    scripts="/opt/tlsmgr/scripts",
    main_cf={"smtp_tls_security_level": "may"},
    tlsmgr_cf=(Line("tlsmgr_worker_processes", "4", 1, 1),),
    caches=(NO_SMTPD, SMTP),
    ticket_lifetime=3600,
    postfix={"smtp_tls_security_level": "may", "smtp_use_tls": "no"},
    service=SERVICE,
    owner_uids=frozenset((0, 101)),
    files=(FileFact("/etc/postfix/main.cf", 0o644), FileFact("/etc/postfix/tlsmgr.cf", None)),
    session_files=(FileFact("/d/smtp.sessions", 0o600, 101),),
    status=serving(smtp=Cache(entries=9, oldest_seconds=60.0)),
)
CROWDED = Cache(entries=1000, evicted=50, oldest_seconds=1800.0)
RELOAD = " && postfix -c /etc/postfix reload"
SAME = "sed -i '1s/^/#/' /etc/postfix/tlsmgr.cf"

CASES = [
    ("configuration", {"problem": "no '='"}, "no '='.", '"${EDITOR:-vi}" /etc/postfix/main.cf'),
    ("enabled", {"service": SERVICE._replace(command="tlsmgr")}, "runs tlsmgr, not tlsmgr-prefork",
     "/opt/tlsmgr/scripts/tlsmgr-postfix -c /etc/postfix enable"),
    ("launcher", {"has_launcher": False}, "tlsmgr-prefork is missing",
     "/opt/tlsmgr/scripts/tlsmgr-postfix -c /etc/postfix enable"),
    ("fallback", {"note": Note("stock", "7", "no room")}, "in place of this one: no room.",
     "/opt/tlsmgr/scripts/tlsmgr-postfix -c /etc/postfix enable"),
    ("process-limit", {"service": SERVICE._replace(process_limit="-")}, "service tlsmgr",
     "postconf -c /etc/postfix -F tlsmgr/unix/process_limit=1" + RELOAD),
    ("serving", {"status": None, "silence": "connect to /x: Connection refused"},
     "cannot be asked: connect to /x: Connection refused.",
     "postfix -c /etc/postfix reload || postfix -c /etc/postfix start"),
    ("serving", {"status": None, "is_root": False}, "cannot be asked",
     "sudo /opt/tlsmgr/scripts/tlsmgrctl -c /etc/postfix check"),
    ("degraded", {"status": degraded(serving(), "no room for smtp")}, "degraded: no room for smtp.",
     "postfix -c /etc/postfix reload || postfix -c /etc/postfix start"),
    ("unknown-parameter", {"tlsmgr_cf": (Line("tlsmgr_workers", "4", 3, 4),)},
     "line 3: there is no parameter tlsmgr_workers; did you mean tlsmgr_worker_processes?",
     "sed -i '3s/^[^=]*=/tlsmgr_worker_processes =/' /etc/postfix/tlsmgr.cf" + RELOAD),
    ("unknown-parameter", {"tlsmgr_cf": (Line("frobnicate", "4", 3, 4),)},
     "line 3: there is no parameter frobnicate.",
     "sed -i '3,4s/^/#/' /etc/postfix/tlsmgr.cf" + RELOAD),
    ("unknown-parameter", {"tlsmgr_cf": (Line("mydomain", "a b", 1, 1),)},
     "mydomain is a parameter of main.cf",
     SAME + " && postconf -c /etc/postfix -e 'mydomain = a b'" + RELOAD),
    ("misplaced-parameter", {"main_cf": {"tlsmgr_worker_processes": "3"}},
     "main.cf sets tlsmgr_worker_processes",
     f"postconf -c /etc/postfix -X tlsmgr_worker_processes && {SAME} && printf '\\n%s\\n'"
     " 'tlsmgr_worker_processes = 3' >>/etc/postfix/tlsmgr.cf" + RELOAD),
    ("bad-value", {"errors": ('tlsmgr.cf, line 1: tlsmgr_worker_processes: bad number "x"',)},
     'bad number "x".', SAME + RELOAD),
    ("bad-value", {"errors": ("tlsmgr.cf, line 9: missing attribute value",)}, "missing",
     '"${EDITOR:-vi}" /etc/postfix/tlsmgr.cf' + RELOAD),
    ("server-cache", {"caches": (replace(NO_SMTPD, table="btree:/d/smtpd"), SMTP)},
     "smtpd_tls_session_cache_database is btree:/d/smtpd.",
     "postconf -c /etc/postfix -X smtpd_tls_session_cache_database" + RELOAD),
    ("client-cache", {"caches": (NO_SMTPD, replace(SMTP, table=""))},
     "smtp_tls_session_cache_database is not set.",
     "postconf -c /etc/postfix -e 'smtp_tls_session_cache_database ="
     " btree:${data_directory}/smtp_scache'" + RELOAD),
    ("cache-type", {"cache_errors": {"smtp": "unsupported dictionary type: proxy"}},
     "smtp_tls_session_cache_database: unsupported dictionary type: proxy.",
     "postconf -c /etc/postfix -e 'smtp_tls_session_cache_database ="
     " btree:${data_directory}/smtp_scache'" + RELOAD),
    ("timeout", {"ticket_lifetime": 86401}, "smtpd_tls_session_cache_timeout is 1d.",
     "postconf -c /etc/postfix -e 'smtpd_tls_session_cache_timeout = 86400s'" + RELOAD),
    ("timeout", {"caches": (replace(SMTP, timeout=200000),)}, "smtp_tls_session_cache_timeout",
     "postconf -c /etc/postfix -e 'smtp_tls_session_cache_timeout = 86400s'" + RELOAD),
    ("farm-secret", {"secret_file": "/f", "secret_problem": "mode 0644; run chmod 600"},
     "/f: mode 0644; run chmod 600.", "chmod 600 /f" + RELOAD),
    ("farm-secret", {"secret_file": "/f", "secret_problem": "owned by user ID 7, which"},
     "user ID 7", "chown root /f" + RELOAD),
    ("farm-secret", {"secret_file": "/f", "secret_problem": "not base64"}, "/f: not base64.",
     "scp -p root@OTHER-HOST:/f /f" + RELOAD),
    ("farm-keys", {"secret_file": "/f", "status": replace(
        serving(), counters={"tktkey": 400, "unknown_keys": 20})},
     "20 of 400 ticket keys", "/opt/tlsmgr/scripts/tlsmgrctl -c /etc/postfix farm"),
    ("open-configuration", {"files": (FileFact("/etc/postfix/main.cf", 0o664),)},
     "main.cf is open to other users (mode 0664)", "chmod go-w /etc/postfix/main.cf"),
    ("open-configuration", {"files": (FileFact("/etc/postfix/main.cf", 0o644, 7),)},
     "owned by user ID 7", "chown root /etc/postfix/main.cf"),
    ("open-sessions", {"session_files": (FileFact("/d/a b", 0o640, 101),)},
     "/d/a b is open to other users (mode 0640)", "chmod 600 '/d/a b'"),
    ("cache-limit", {"status": serving(smtp=CROWDED)},
     "50 sessions were removed from the smtp cache to make room; the oldest left is 30min old, of"
     " 1h.",
     "printf '\\n%s\\n' 'smtp_tls_session_cache_size_limit = 320M' >>/etc/postfix/tlsmgr.cf"
     + RELOAD),
    ("cache-limit", {"status": serving(smtp=CROWDED), "caches": (replace(SMTP, entry_limit=1000),)},
     "50 sessions were removed",
     "printf '\\n%s\\n' 'smtp_tls_session_cache_entry_limit = 2400' >>/etc/postfix/tlsmgr.cf"
     + RELOAD),
    ("shared-memory", {"shared_memory": SharedMemory("/dev/shm", None, 0)}, "missing", "mkdir -p"),
    ("shared-memory", {"shared_memory": SharedMemory("/dev/shm", 0o755, 1 << 30)}, "mode 0755",
     "chmod 1777 /dev/shm"),
    ("shared-memory", {"shared_memory": SharedMemory("/dev/shm", 0o1777, 4096)},
     "full: 4.0KiB are free", "ls -lS /dev/shm"),
]  # fmt: skip


def test_a_good_host_has_no_findings() -> None:
    assert list(examine(GOOD)) == []


@pytest.mark.parametrize(("name", "change", "what", "command"), CASES)
def test_a_finding(name: str, change: dict[str, object], what: str, command: str) -> None:
    ((found, finding),) = examine(replace(GOOD, **change))  # type: ignore[arg-type]
    assert found == name
    assert what in finding.what
    assert finding.command.startswith(command)


def test_each_check_has_a_case() -> None:
    assert {name for name, *_ in CASES} == {check.name for check in CHECKS}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("change", [change for _, change, *_ in CASES])
def test_findings_are_sentences_and_one_command(change: dict[str, object]) -> None:
    for _, finding in examine(replace(GOOD, **change)):  # type: ignore[arg-type]
        for text in (finding.what, finding.why):
            assert text.endswith((".", "?"))
            assert ".." not in text
        assert "\n" not in finding.command


@pytest.mark.parametrize(
    "change",
    [
        {"caches": (NO_SMTPD, replace(SMTP, table="")), "postfix": {"smtp_use_tls": "no"}},
        {"caches": (NO_SMTPD, replace(SMTP, table="")), "postfix": {}},
        {"status": serving(smtp=replace(CROWDED, oldest_seconds=3601.0))},
        {"status": serving(smtp=replace(CROWDED, evicted=0))},
        {"status": replace(serving(), counters={"tktkey": 400, "unknown_keys": 20})},
        {"secret_file": "/f", "status": replace(
            serving(), counters={"tktkey": 401, "unknown_keys": 20})},
        {"secret_file": "/f", "status": replace(
            serving(), counters={"tktkey": 20, "unknown_keys": 19})},
        {"note": Note("starting", "7", "")},
        {"ticket_lifetime": 86400},
    ],
)  # fmt: skip
def test_what_is_in_order(change: dict[str, object]) -> None:
    assert list(examine(replace(GOOD, **change))) == []  # type: ignore[arg-type]


def test_a_daemon_that_is_not_enabled_need_not_answer() -> None:
    facts = replace(GOOD, service=SERVICE._replace(command="tlsmgr"), status=None)
    assert [name for name, _ in examine(facts)] == ["enabled"]


def test_a_start_that_failed_is_one_finding() -> None:
    in_place = degraded(Status(IN_PLACE, "1.0", 0.0, SERVING, ()), "it did not start")
    facts = replace(GOOD, note=Note("stock", "7", "no room"), status=in_place)
    assert [name for name, _ in examine(facts)] == ["fallback"]
    facts = replace(facts, problem="bad main.cf")  # with which neither of the two starts
    assert [name for name, _ in examine(facts)] == ["configuration"]


def test_a_secret_that_cannot_be_used_is_one_finding() -> None:
    status = degraded(
        busy(60), "the farm secret cannot be used", "tlsmgr_farm_store cannot be used"
    )
    facts = replace(GOOD, secret_file="/f", secret_problem="owned by user ID 7", status=status)
    assert [name for name, _ in examine(facts) if name != "cache-limit"] == ["farm-secret"]


def test_commands_are_for_the_instance_that_was_looked_at() -> None:
    facts = replace(GOOD, status=None, silence="Permission denied", is_root=False)
    ((_, finding),) = examine(facts)
    assert finding.command == "sudo /opt/tlsmgr/scripts/tlsmgrctl -c /etc/postfix check"
    facts = replace(facts, instance=Instance("/s/private/tlsmgr", "", False), service=None)
    ((_, finding),) = examine(facts)
    assert finding.command == "sudo /opt/tlsmgr/scripts/tlsmgrctl --socket /s/private/tlsmgr check"


def test_started_by_hand() -> None:
    facts = Facts(Instance("/s/private/tlsmgr", "/c", False), "/opt/scripts", silence="gone")
    ((name, finding),) = examine(facts)
    assert (name, finding.command) == ("serving", "/opt/scripts/tlsmgr-start -c /c")
    errors = {"smtp": "unsupported dictionary type: x"}
    found = examine(replace(facts, status=busy(1), cache_errors=errors))
    ((name, finding),) = found
    assert finding.command.endswith("_database = btree:${data_directory}/smtp_scache' >>/c/main.cf")


@pytest.mark.parametrize("change", [change for _, change, *_ in CASES])
def test_the_lines_fit_a_terminal(change: dict[str, object]) -> None:
    shown = lines(GOOD.instance, list(examine(replace(GOOD, **change))))  # type: ignore[arg-type]
    assert [x for x in shown if len(x) > 80 and not x.startswith("    # ")] == []


def test_the_lines_for_a_person() -> None:
    finding = Finding("It is wrong.", "It matters.", "mend " + "x" * 100)
    assert lines(GOOD.instance, [("enabled", finding)]) == [
        "enabled: It is wrong.",
        "    It matters.",
        f"    # mend {'x' * 100}",
        "",
        f"/etc/postfix: {len(CHECKS)} checks, 1 thing to mend",
    ]
