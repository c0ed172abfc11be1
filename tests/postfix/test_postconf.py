"""The configuration floor held against the real thing: postconf(1) and Postfix's own tlsmgr(8)."""

import os
import pwd
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.config_outcomes import STOCK_TLSMGR, TIMEOUT, main_cf, needs_stock, ours, stock
from unit.config.test_expand import BAD, GOOD, NAMES

POSTCONF = shutil.which("postconf") or "/usr/sbin/postconf"
AT_ONCE = 128
"""Stock's tlsmgr processes at a time: nearly all of them are in the pause after a fatal error."""

needs_postconf = pytest.mark.skipif(not os.path.exists(POSTCONF), reason="postconf is missing")

Case = tuple[str, tuple[str, ...]]
"""Lines of a main.cf, and -o options."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that mail_owner may enter, for the files of all cases."""
    path = Path(tempfile.mkdtemp(prefix="c-"))  # short: in the path of a socket
    path.chmod(0o755)
    for name in ("queue", "queue/public", "data"):
        (path / name).mkdir()
    if os.geteuid() == 0 and os.path.exists(STOCK_TLSMGR):
        owner = pwd.getpwnam("postfix")
        os.chown(path / "data", owner.pw_uid, owner.pw_gid)
    yield path
    shutil.rmtree(path)


def compare(directory: Path, cases: list[Case], most_warnings: int = 100) -> None:
    """Both sides must have the same outcome in each case, and the same first warnings."""
    paths = [main_cf(directory, f"case{i}", content) for i, (content, _) in enumerate(cases)]
    options = [case[1] for case in cases]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        theirs = list(pool.map(stock, paths, options))
    for case, path, option, (warnings, result) in zip(cases, paths, options, theirs, strict=True):
        assert (case, ours(path, option)) == (case, (warnings[:most_warnings], result))


def definitions() -> str:
    """The names of the expansion tests as lines of main.cf, but for the one that kills tlsmgr."""
    return "".join(f"{name} = {value}\n" for name, value in NAMES.items() if name != "loop3")


@needs_stock
def test_expansion_is_that_of_tlsmgr(directory: Path) -> None:
    good = [(f"{definitions()}{TIMEOUT} = x[{text}]\n", ()) for text, _ in GOOD]
    bad = [(f"{definitions()}{TIMEOUT} = {text}\n", ()) for text, _ in BAD]
    compare(directory, [*good, *bad])


@needs_postconf
def test_expansion_is_that_of_postconf(directory: Path) -> None:
    name = "smtp_tls_session_cache_database"
    for number, (text, expanded) in enumerate(GOOD):
        path = main_cf(directory, f"case{number}", f"{definitions()}{name} = [{text}]\n")
        done = subprocess.run(
            [POSTCONF, "-c", str(path), "-x", "-h", name],
            capture_output=True,
            timeout=30,
            check=True,
        )
        shown = done.stdout.decode(errors="surrogateescape")
        assert (text, shown) == (text, f"[{expanded}]\n")


NESTING = [
    "".join(f"n{i} = $n{i + 1}\n" for i in range(length)) + f"n{length} = 300\n{TIMEOUT} = $n0\n"
    for length in (98, 99, 100, 101)
]

LINES = [
    f"{TIMEOUT} = 200\n",
    f"{TIMEOUT} = 200",
    f"{TIMEOUT}=200\r\n",
    f"  {TIMEOUT} = 200\n",
    f"# comment\n{TIMEOUT} =\n  200\n",
    f"{TIMEOUT} = 2\n\t00\n",
    f"{TIMEOUT} = 2\n# comment\n\n \n 00\n",
    f"{TIMEOUT} = 2\n\x0c00\n",
    f"{TIMEOUT}\n = 200\n",
    f"{TIMEOUT} = 200 # no comment\n",
    f"{TIMEOUT} = x # no comment\n",
    f"{TIMEOUT} = 200\n{TIMEOUT} = 200\n{TIMEOUT} = 300\n",
    f"{TIMEOUT} = 200\n foo bar baz foo bar baz foo bar baz\n= 3\n",
    f"foo bar\n{TIMEOUT} = 200\n",
    "\nfoo\n  bar\n",
    "= bar\n",
    "a = {\nb = }\nc = ${\n",
    f"{TIMEOUT} = x\xff\u00fc\x7f\n",
    f"{TIMEOUT} = x\udcfc\n",
    "process_name = me\nconfig_directory = there\nservice_name = it\n"
    f"{TIMEOUT} = $process_name $config_directory $service_name\n",
]

UNDEFINED = [
    f"{TIMEOUT} = $smtpd_tls_session_cache_timeout\n",
    "smtpd_tls_session_cache_timeout = $smtp_tls_session_cache_timeout\n",
    f"{TIMEOUT} = x$ipc_timeout,$data_directory,$mail_owner,$syslog_name,$daemon_timeout\n",
    f"{TIMEOUT} = x$tls_random_bytes,$smtpd_timeout,$tls_random_source\n",
    f"{TIMEOUT} = x$tls_random_reseed_period,$tls_random_prng_update_period\n",
    f"{TIMEOUT} = x$myhostname,$mydomain,$smtputf8_enable,$default_database_type\n",
    f"{TIMEOUT} = x$mail_name,$command_directory,$myorigin,$mynetworks_style,$inet_interfaces\n",
    f"{TIMEOUT} = x$inet_protocols,$default_process_limit,$ipc_idle,$ipc_ttl,$hash_queue_depth\n",
    f"{TIMEOUT} = x$trigger_timeout,$fork_attempts,$fork_delay,$deliver_lock_attempts\n",
    f"{TIMEOUT} = x$deliver_lock_delay,$stale_lock_time,$line_length_limit,$lmdb_map_size\n",
    f"{TIMEOUT} = x$berkeley_db_create_buffer_size,$berkeley_db_read_buffer_size\n",
    f"{TIMEOUT} = x$service_throttle_time,$hash_queue_names,$process_id_directory\n",
    f"{TIMEOUT} = x$delay_logging_resolution_limit,$message_size_limit,$mydestination\n",
    "compatibility_level = 3.6\n" + f"{TIMEOUT} = x$mynetworks_style,$relay_domains\n",
    f"{TIMEOUT} = $default_process_limit\n",
    f"{TIMEOUT} = x$service_name,$process_name,$config_directory\n",
    "multi_instance_name = mi\n" + f"{TIMEOUT} = x$syslog_name,$multi_instance_name\n",
    "smtpd_timeout = 9\n" + f"{TIMEOUT} = x$smtpd_timeout\n",
]

TIMES = """
0 1 119 120 121 8640000 8640001 -1 +200 007 10sfoo 1000sfoo 1d2h 100d 101d 2w S 10S s m 1.5 0x10
2147483647 2147483648 99999999999999999999 ${x?1} 35791394m 143h
"""

VALUES = [
    *(f"{TIMEOUT} = {text}\n" for text in TIMES.split()),
    f"{TIMEOUT} = 10 s\n",
    f"a = 1\n{TIMEOUT} = ${{a?{{ 300}}}}\n",
    *(f"tls_random_bytes = {text}\n" for text in ("0", "-5", "1x", "", "5 ", "0x5", "2147483648")),
    "tls_random_reseed_period = 0\n",
    "tls_random_prng_update_period = -1\n",
    "ipc_timeout = 0\n",
    "daemon_timeout = 0s\n",
    "daemon_timeout = never\n",
    "queue_directory =\n",
    "syslog_name =\n",
    "syslog_facility =\n",
    "syslog_facility = foo\n",
    "syslog_facility = MAIL\n",
    "syslog_facility = local7\n",
    "compatibility_level = x\n",
    "compatibility_level =\n",
    "compatibility_level = 3.6.1.1\n",
    "compatibility_level = 3.1024\n",
    "smtputf8_enable = maybe\n",
    "smtputf8_enable = NO\n",
    "daemon_table_open_error_is_fatal = 1\n",
    "maillog_file_prefixes =\n",
    "postlog_service_name =\n",
    "default_database_type =\n",
    "default_privs =\n",
    "mail_owner =\n",
    "setgid_group =\n",
    "myhostname =\n",
]


@needs_stock
def test_lines_names_and_values_are_those_of_tlsmgr(directory: Path) -> None:
    contents = [*NESTING, *LINES, *UNDEFINED, *VALUES]
    compare(directory, [(content, ()) for content in contents])


@needs_stock
def test_options_are_those_of_tlsmgr(directory: Path) -> None:
    content = f"a = 200\n{TIMEOUT} = $a\n"
    options: list[tuple[str, ...]] = [
        ("a=300",),
        ("a = 300 ",),
        (" a\t=300", "a=400"),
        ("a=400", "a=300"),
        (f"{TIMEOUT}=$$a",),
        (f"{TIMEOUT}=${{b?{{1000}}:{{500}}}}", "b=1"),
        ("foo",),
        ("=foo",),
        ("foo bar=1",),
        ("",),
        ("a=", "ipc_timeout=0"),
    ]
    compare(directory, [(content, option) for option in options])


DATABASE = "smtp_tls_session_cache_database"

ACCOUNTS = [
    f"{line}\n"
    for line in (
        "mail_owner = no.such.user",
        "mail_owner = root",
        "mail_owner = nobody",
        "default_privs = no.such.user",
        "default_privs = root",
        "default_privs = postfix",
        "setgid_group = no.such.group",
        "setgid_group = root",
        "setgid_group = postfix",
        "setgid_group = nogroup",
    )
]

FILES = [
    f"{DATABASE} = btree:/etc/one\n",
    f"{DATABASE} = hash:/usr/two/\nsmtp_tls_loglevel = 2\n",
    f"{DATABASE} = btree:three\n",
    f"{DATABASE} = /etc/four\n",
    f"{DATABASE} = btree:/nonexistent/five\n",
    f"{DATABASE} = btree:$data_directory/six\nsmtp_tls_loglevel = none, abc\n",
    f"{DATABASE} = btree:$data_directory/seven\nsmtp_tls_loglevel = 10\n",
    f"{DATABASE} = btree:/etc/eight\n{TIMEOUT} = 0\nsmtp_tls_loglevel = abc\n",
    f"{DATABASE} = btree:/etc/nine\nlmtp_tls_session_cache_database = btree:/etc/nine\n",
    f"{DATABASE} = foo:ten\nsmtpd_tls_session_cache_database = foo:ten\n",
    f"{DATABASE} = foo:eleven\n",
    f"{DATABASE} = foo:twelve\ndaemon_table_open_error_is_fatal = yes\n",
    f"{DATABASE} = internal:thirteen\n",
    f"{DATABASE} = :fourteen\ndaemon_table_open_error_is_fatal = yes\n",
    f"{DATABASE} = btree:\n",
    "tls_random_exchange_name = /etc/fifteen\n",
    "tls_random_exchange_name = sixteen\n",
    "tls_random_exchange_name =\n",
    f"tls_random_exchange_name = /etc/seventeen\n{DATABASE} = btree:/etc/eighteen\n",
]


@needs_stock
def test_accounts_and_files_are_those_of_tlsmgr(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory / "queue")  # where both look for a name without a directory
    compare(directory, [(content, ()) for content in ACCOUNTS + FILES])


@needs_stock
@pytest.mark.long
def test_expansion_of_rubbish_is_that_of_tlsmgr(directory: Path) -> None:
    chooser = random.Random(20240124)
    words = ["$", "${", "${", "$(", "}", ")", "{", "}", "?", ":", "?{", "}:{", "a", "nope", "to_a"]
    words += ["loop", " ", "${{", "} == {", "} <level {", "}<{", "1", "3.6", "x-", "$$"]
    texts = ["".join(chooser.choices(words, k=chooser.randrange(2, 14))) for _ in range(1000)]
    cases: list[Case] = [(f"{definitions()}{TIMEOUT} = x[{text}]\n", ()) for text in texts]
    compare(directory, cases, most_warnings=1)  # after the first fault Postfix may see others
