"""The configuration floor held against the real thing: postconf(1) and Postfix's own tlsmgr(8).

The same main.cf goes to both sides. tlsmgr is run with -S, so that it reads one request from
standard input, and logs to a socket in the place of postlogd(8). It needs root, as it changes to
mail_owner.
"""

import os
import pwd
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_config_expand import BAD, GOOD, NAMES

from tlsmgr.config.accounts import check, look_up
from tlsmgr.config.caches import cache_settings, session_timeout
from tlsmgr.config.load import load
from tlsmgr.config.randomness import random_settings
from tlsmgr.config.redirect import Haven
from tlsmgr.log import Fatal, printable

POSTCONF = shutil.which("postconf") or "/usr/sbin/postconf"
STOCK_TLSMGR = "/usr/lib/postfix/sbin/tlsmgr"
TIMEOUT = "smtp_tls_session_cache_timeout"
POLICY_REQUEST = b"request\0policy\0cache_type\0smtp\0\0"
AT_ONCE = 32
"""Stock's tlsmgr processes at a time: nearly all of them are in the pause after a fatal error."""

needs_postconf = pytest.mark.skipif(not os.path.exists(POSTCONF), reason="postconf is missing")
needs_stock = pytest.mark.skipif(
    not os.path.exists(STOCK_TLSMGR) or os.geteuid() != 0,
    reason="Postfix's tlsmgr is missing, or root is needed to run it",
)

Outcome = tuple[list[str], str]
"""Warnings, and then the answer to a policy request or the text of a fatal error."""

Case = tuple[str, tuple[str, ...]]
"""Lines of a main.cf, and -o options."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that mail_owner may enter, for the files of all cases."""
    path = Path(tempfile.mkdtemp(prefix="tlsmgr-config-"))
    path.chmod(0o755)
    for name in ("queue", "queue/public", "data"):
        (path / name).mkdir()
    if os.geteuid() == 0 and os.path.exists(STOCK_TLSMGR):
        owner = pwd.getpwnam("postfix")
        os.chown(path / "data", owner.pw_uid, owner.pw_gid)
    yield path
    shutil.rmtree(path)


def main_cf(directory: Path, name: str, content: str) -> Path:
    """A configuration directory for one case; its main.cf is at rest, so that it is read once."""
    base = (
        "compatibility_level = 3.6\nmyhostname = host.example.com\nmydomain = example.com\n"
        f"queue_directory = {directory}/queue\ndata_directory = {directory}/data\n"
        f"maillog_file = /var/log/mail\npostlog_service_name = ../../{name}/postlog\n"
    )
    path = directory / name
    path.mkdir()
    (path / "main.cf").write_bytes((base + content).encode(errors="surrogateescape"))
    os.utime(path / "main.cf", (time.time() - 100, time.time() - 100))
    return path


def ours(path: Path, options: tuple[str, ...]) -> Outcome:
    """What we make of a main.cf."""
    warnings: list[str] = []
    try:
        conf = load(str(path), warnings.append, overrides=options)
        owner = check(conf, look_up(conf))
        haven = Haven(owner.name, owner.uid, conf.text("data_directory"))
        random_settings(conf, haven, warnings.append)
        cache_settings(conf, haven, warnings.append)
    except Fatal as error:
        result = error.text
    else:
        result = f"timeout {session_timeout(conf.seconds(TIMEOUT))}"
    lines = [printable(line, keep_utf8=True).decode() for line in [*warnings, result]]
    return lines[:-1], lines[-1]


def stock(path: Path, options: tuple[str, ...]) -> Outcome:
    """What Postfix's tlsmgr makes of it."""
    arguments = [word for option in options for word in ("-o", option)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as logged:
        logged.bind(f"{path}/postlog")
        (path / "postlog").chmod(0o666)
        with subprocess.Popen(
            [STOCK_TLSMGR, "-S", "-t", "unix", "-l", *arguments],
            env={"MAIL_CONFIG": str(path), "LANG": "C", "POSTLOG_SERVICE": f"{path}/postlog"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            collector = ThreadPoolExecutor(1)
            lines = collector.submit(collect, logged)
            reply, _ = process.communicate(POLICY_REQUEST, timeout=60)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", f"{path}/postlog")
        texts = [re.sub(r"^.*?/tlsmgr\[[0-9]+\]: ", "", line) for line in lines.result(60)]
    warnings = [text[9:] for text in texts if text.startswith("warning: ")]
    warnings = [text for text in warnings if " is unavailable. " not in text]  # said by the store
    fatal = [text[7:] for text in texts if text.startswith("fatal: ")]
    match = re.search(rb"timeout\0([0-9]+)\0", reply)
    return warnings, f"timeout {match[1].decode()}" if match else "".join(fatal)


def collect(logged: socket.socket) -> list[str]:
    """The log lines up to an empty one."""
    return [line.decode(errors="replace") for line in iter(lambda: logged.recv(65536), b"")]


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
