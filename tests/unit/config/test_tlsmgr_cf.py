"""The parameters of our own: a mistake in them is a line in the log, and the default holds."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.settled_files import write_settled

from tlsmgr.config.load import Configuration, load
from tlsmgr.config.parameters import CACHE_TYPES, OURS
from tlsmgr.config.values import Kind

SIZE = "smtp_tls_session_cache_size_limit"
ENTRIES = "lmtp_tls_session_cache_entry_limit"

Outcome = tuple[Configuration, list[str], list[str]]
"""The configuration, the warnings and the errors."""


def write(path: Path, content: str) -> None:
    """A file that only its owner can write."""
    write_settled(path, content)
    path.chmod(0o644)


def load_directory(directory: Path, *options: str) -> Outcome:
    warnings: list[str] = []
    errors: list[str] = []
    conf = load(str(directory), warnings.append, errors.append, overrides=options, optional=True)
    return conf, warnings, errors


def load_text(directory: Path, tlsmgr_cf: str, *options: str) -> Outcome:
    write(directory / "tlsmgr.cf", tlsmgr_cf)
    return load_directory(directory, *options)


def all_defaults(conf: Configuration) -> bool:
    """Whether all our parameters have the values that a start without tlsmgr.cf has."""
    caches = [
        (conf.number(f"{cache_type}_tls_session_cache_size_limit"),
         conf.number(f"{cache_type}_tls_session_cache_entry_limit"))
        for cache_type in CACHE_TYPES
    ]  # fmt: skip
    others = (
        conf.number("tlsmgr_worker_processes"),
        conf.flag("tlsmgr_session_encryption"),
        conf.seconds("tlsmgr_statistics_interval"),
        conf.text("tlsmgr_farm_secret_file"),
        conf.text("tlsmgr_farm_store_password_file"),
        conf.milliseconds("tlsmgr_farm_deadline"),
    )
    return (caches, others) == ([(134217728, 0)] * 3, (0, True, 600, "", "", 50))


@pytest.mark.parametrize(
    ("text", "size"),
    [("2000000", 2000000), ("100M", 100 << 20), ("2g", 2 << 30), ("1024k", 1 << 20)],
)
def test_sizes_have_suffixes(tmp_path: Path, text: str, size: int) -> None:
    conf, warnings, errors = load_text(tmp_path, f"{SIZE} = {text}\n")
    assert conf.number(SIZE) == size
    assert (warnings, errors) == ([], [])


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("tlsmgr_worker_processes", "many", 'bad number "many"; using the default 0'),
        ("tlsmgr_worker_processes", "", 'bad number ""; using the default 0'),
        ("tlsmgr_worker_processes", "-1", '"-1" is below the minimum of 0; using the default 0'),
        (
            "tlsmgr_worker_processes",
            "513",
            '"513" is above the maximum of 512; using the default 0',
        ),
        (SIZE, "100X", 'bad size "100X"; using the default 128M'),
        (SIZE, "1023k", '"1023k" is below the minimum of 1M; using the default 128M'),
        (SIZE, "1025G", '"1025G" is above the maximum of 1024G; using the default 128M'),
        ("tlsmgr_farm_deadline", "50", 'bad time "50"; using the default 50ms'),
        ("tlsmgr_farm_deadline", "1m", 'bad time "1m"; using the default 50ms'),
        (
            "tlsmgr_farm_deadline",
            "0ms",
            '"0ms" is below the minimum of 1ms; using the default 50ms',
        ),
        (
            "tlsmgr_farm_deadline",
            "11s",
            '"11s" is above the maximum of 10000ms; using the default 50ms',
        ),
        (ENTRIES, "1k", 'bad number "1k"; using the default 0'),
        (ENTRIES, "-1", '"-1" is below the minimum of 0; using the default 0'),
        (
            "tlsmgr_session_encryption",
            "off",
            'neither yes nor no: "off"; using the default yes',
        ),
        (
            "tlsmgr_statistics_interval",
            "wrong",
            'bad time "wrong"; using the default 600s',
        ),
        (
            "tlsmgr_single_use_tickets",
            "maybe",
            'not one of no, yes, strict: "maybe"; using the default no',
        ),
        ("tlsmgr_statistics_interval", "-1", 'bad time "-1"; using the default 600s'),
        ("tlsmgr_statistics_interval", "10sfoo", 'bad time "10sfoo"; using the default 600s'),
        (
            "tlsmgr_farm_secret_file",
            "farm.secret",
            'not an absolute path: "farm.secret"; using the default (empty)',
        ),
        (SIZE, "${x", 'truncated macro reference: "${x"; using the default 128M'),
        (SIZE, f"${SIZE}", f'unreasonable macro call nesting: "{SIZE}"; using the default 128M'),
        (
            SIZE,
            "${{99999999999999999999} < {1} ? {2M} : {3M}}",
            "mac_exp_eval: bad conversion: 99999999999999999999; using the default 128M",
        ),
    ],
)
def test_a_bad_value_is_an_error_line_and_the_default_holds(
    tmp_path: Path, name: str, value: str, fault: str
) -> None:
    conf, warnings, errors = load_text(tmp_path, f"# comment\n\n{name} = {value}\n")
    assert all_defaults(conf)
    assert errors == [f"{tmp_path}/tlsmgr.cf, line 3: {name}: {fault}"]
    assert warnings == []
    (tmp_path / "tlsmgr.cf").unlink()
    conf, warnings, errors = load_directory(tmp_path, f"{name}={value}")
    assert all_defaults(conf)
    assert errors == [f"option -o: {name}: {fault}"]
    assert warnings == []


def test_a_path_may_be_empty_or_refer_to_a_directory(tmp_path: Path) -> None:
    name = "tlsmgr_farm_secret_file"
    for value, path in [("$config_directory/farm", f"{tmp_path}/farm"), ("/a b", "/a b"), ("", "")]:
        conf, warnings, errors = load_text(tmp_path, f"{name} = {value}\n")
        assert (conf.text(name), warnings, errors) == (path, [], [])


@pytest.mark.parametrize("value", ["no", "Yes", "STRICT"])
def test_a_choice_may_be_in_any_case(tmp_path: Path, value: str) -> None:
    conf, warnings, errors = load_text(tmp_path, f"tlsmgr_single_use_tickets = {value}\n")
    assert conf.text("tlsmgr_single_use_tickets") == value.lower()
    assert (warnings, errors) == ([], [])


def test_the_smallest_and_the_largest_values_are_good(tmp_path: Path) -> None:
    conf, _, errors = load_text(
        tmp_path, f"{SIZE} = 1M\nsmtpd{SIZE[4:]} = 1024G\ntlsmgr_worker_processes = 512\n"
    )
    assert errors == []
    assert (conf.number(SIZE), conf.number(f"smtpd{SIZE[4:]}")) == (1 << 20, 1 << 40)
    assert conf.number("tlsmgr_worker_processes") == 512


def test_a_bad_value_leaves_the_others_alone(tmp_path: Path) -> None:
    conf, _, errors = load_text(tmp_path, f"{SIZE} = 100X\n{ENTRIES} = 5\n")
    assert len(errors) == 1
    assert conf.number(ENTRIES) == 5


def test_an_option_wins_and_the_default_replaces_a_bad_one(tmp_path: Path) -> None:
    content = "tlsmgr_worker_processes = 3\n"
    assert load_text(tmp_path, content, "tlsmgr_worker_processes=4")[0].number(
        "tlsmgr_worker_processes"
    ) == 4  # fmt: skip
    conf, _, errors = load_text(tmp_path, content, "tlsmgr_worker_processes=x")
    assert len(errors) == 1
    assert conf.number("tlsmgr_worker_processes") == 0


def test_all_of_ours_wrong_at_once(tmp_path: Path) -> None:
    """One error line each. A text can't be wrong here: whoever uses it says so."""
    content = "".join(f"{row.name} = wrong\n" * 5 for row in OURS)
    conf, _, errors = load_text(tmp_path, content, *[f"{row.name}=wrong" for row in OURS])
    assert all_defaults(conf)
    assert len(errors) == len([row for row in OURS if row.kind is not Kind.TEXT])


def test_the_line_of_the_last_value_is_shown(tmp_path: Path) -> None:
    _, warnings, errors = load_text(tmp_path, f"{SIZE} = 2M\n{SIZE} =\n  x\n")
    assert warnings == [f"{tmp_path}/tlsmgr.cf, line 2: overriding earlier entry: {SIZE}=2M"]
    assert errors == [f'{tmp_path}/tlsmgr.cf, line 2: {SIZE}: bad size "x"; using the default 128M']


def test_values_refer_to_those_of_either_file_and_to_defaults(tmp_path: Path) -> None:
    write(tmp_path / "main.cf", "megabytes = 2\n")
    lmtp = f"lmtp{SIZE[4:]} = $max_use$tlsmgr_worker_processes${{max_use}}k"
    conf, _, errors = load_text(tmp_path, f"{SIZE} = ${{megabytes}}M\n{lmtp}\n")
    assert errors == []
    assert conf.number(SIZE) == 2 << 20
    assert conf.number(f"lmtp{SIZE[4:]}") == 1000100 << 10


# The file.


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            "tlsmgr_worker_processes",
            "missing '=' after attribute name: \"tlsmgr_worker_processes\"",
        ),
        ("= 3", 'missing attribute name: "= 3"'),
    ],
)
def test_a_file_with_a_syntax_error_is_ignored(tmp_path: Path, line: str, fault: str) -> None:
    conf, warnings, errors = load_text(
        tmp_path, f"{ENTRIES} = 5\n{line}\n{SIZE} = 100X\n", "tlsmgr_statistics_interval=600"
    )
    assert all_defaults(conf)
    assert errors == [
        f"{tmp_path}/tlsmgr.cf, line 2: {fault}; ignoring this file and using the defaults"
    ]
    assert warnings == []


def make_directory(path: Path) -> None:
    path.mkdir(mode=0o755)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_directory, "Is a directory"),
        (make_loop, "Too many levels of symbolic links"),
    ],
)
def test_a_file_that_cannot_be_read_is_ignored(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "tlsmgr.cf")
    conf, warnings, errors = load_directory(tmp_path)
    assert all_defaults(conf)
    assert errors == [
        f"open {tmp_path}/tlsmgr.cf: {reason}; ignoring this file and using the defaults"
    ]
    assert warnings == []


@pytest.mark.parametrize("mode", ["0664", "0646", "0666", "1622"])
def test_a_file_that_others_can_write_to_is_warned_of_and_used(tmp_path: Path, mode: str) -> None:
    write(tmp_path / "tlsmgr.cf", f"{ENTRIES} = 5\n")
    (tmp_path / "tlsmgr.cf").chmod(int(mode, 8))
    conf, warnings, errors = load_directory(tmp_path)
    assert conf.number(ENTRIES) == 5
    assert errors == []
    assert warnings == [
        f"{tmp_path}/tlsmgr.cf: writable by users other than its owner (mode {mode})"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to give a file away")
def test_a_file_of_another_user_is_warned_of_and_used(tmp_path: Path) -> None:
    write(tmp_path / "tlsmgr.cf", f"{ENTRIES} = 5\n")
    os.chown(tmp_path / "tlsmgr.cf", 65534, 0)
    conf, warnings, errors = load_directory(tmp_path)
    assert conf.number(ENTRIES) == 5
    assert errors == []
    assert warnings == [f"{tmp_path}/tlsmgr.cf: owned by user ID 65534, which is not root"]


# Names.


def test_names_in_tlsmgr_cf_that_are_not_ours(tmp_path: Path) -> None:
    conf, warnings, errors = load_text(
        tmp_path,
        "tlsmgr_worker_process = 7\nqueue_directory = /q\nsmtp_entry_limit = 5\nfoo = 1\n"
        "smtpd_banner = hello\n",
    )
    assert errors == []
    assert all_defaults(conf)
    assert conf.text("queue_directory") == "/var/spool/postfix"
    place = f"{tmp_path}/tlsmgr.cf, line"
    belongs = "has no effect here: this parameter belongs in main.cf"
    assert warnings == [
        f'{place} 1: unknown parameter "tlsmgr_worker_process" has no effect; '
        'did you mean "tlsmgr_worker_processes"?',
        f"{place} 2: queue_directory {belongs}",
        f'{place} 3: unknown parameter "smtp_entry_limit" has no effect; '
        'did you mean "smtp_tls_session_cache_entry_limit"?',
        f'{place} 4: unknown parameter "foo" has no effect',
        f"{place} 5: smtpd_banner {belongs}",
    ]


@pytest.mark.parametrize(
    ("option", "warning"),
    [
        (
            "tlsmgr_workers=4",
            'unknown parameter "tlsmgr_workers" has no effect; '
            'did you mean "tlsmgr_worker_processes"?',
        ),
        (
            "smtp_tls_sesion_cache_timeout=1h",
            'unknown parameter "smtp_tls_sesion_cache_timeout" has no effect; '
            'did you mean "smtp_tls_session_cache_timeout"?',
        ),
        (
            "ipc_timeouts=1h",
            'unknown parameter "ipc_timeouts" has no effect; did you mean "ipc_timeout"?',
        ),
        ("frobnicate=1", 'unknown parameter "frobnicate" has no effect'),
        ("size=100", 'unknown parameter "size" has no effect'),
    ],
)
def test_an_option_with_a_name_that_nothing_knows(
    tmp_path: Path, option: str, warning: str
) -> None:
    write(tmp_path / "main.cf", "size = 5\nsizes = 6\nx = $sizes, $$, size\n")
    _, warnings, errors = load_directory(tmp_path, option)
    assert warnings == [f"option -o: {warning}"]
    assert errors == []


@pytest.mark.parametrize(
    "option",
    [
        "smtpd_banner=hello",
        "mail_name=Mail",
        "mail_version=1",
        "mine_destination_concurrency_limit=2",
        "process_name=x",
        "service_name=x",
        "process_id=1",
        "config_directory=/x",
        "size=100",
        "braces=1",
        "blanks=1",
        "chosen=1",
        "compared=1",
        "tlsmgr=1",
    ],
)
def test_an_option_that_means_something_brings_no_warning(tmp_path: Path, option: str) -> None:
    write(
        tmp_path / "main.cf",
        "a = $size, ${braces}\nb = $( blanks )\nc = ${chosen?{1}:{${{$compared} == {2}}}}\n",
    )
    write(tmp_path / "tlsmgr.cf", f"{ENTRIES} = ${{tlsmgr}}5\n")
    _, warnings, errors = load_directory(tmp_path, option)
    assert (warnings, errors) == ([], [])


def test_an_option_may_be_used_by_another_one(tmp_path: Path) -> None:
    conf, warnings, _ = load_directory(tmp_path, "workers=4", "tlsmgr_worker_processes=$workers")
    assert conf.number("tlsmgr_worker_processes") == 4
    assert warnings == []
