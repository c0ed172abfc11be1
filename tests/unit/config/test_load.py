"""The loader: which file says what, who wins, what is frozen, and when a file may be missing."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.settled_files import write_settled

from tlsmgr.config.load import Configuration, directory_of, load
from tlsmgr.config.parameters import CACHE_TYPES, PARAMETERS
from tlsmgr.log import Fatal


def load_texts(
    directory: Path,
    main_cf: str = "",
    tlsmgr_cf: str | None = None,
    *options: str,
    defaults: Mapping[str, str] | None = None,
) -> tuple[Configuration, list[str]]:
    """The configuration from two texts, and the warnings."""
    write_settled(directory / "main.cf", main_cf)
    if tlsmgr_cf is not None:
        write_settled(directory / "tlsmgr.cf", tlsmgr_cf)
    warnings: list[str] = []
    conf = load(
        str(directory), warnings.append, pytest.fail, overrides=options, defaults=defaults or {}
    )
    return conf, warnings


def test_an_empty_main_cf_brings_the_defaults(tmp_path: Path) -> None:
    conf, warnings = load_texts(tmp_path)
    assert warnings == []
    assert conf.values.keys() == {row.name for row in PARAMETERS}
    assert conf.directory == str(tmp_path)
    assert conf.text("tls_random_exchange_name") == "/var/lib/postfix/prng_exch"
    assert conf.text("tls_random_source") == "dev:/dev/urandom"
    assert conf.text("syslog_name") == "postfix"
    assert conf.number("tls_random_bytes") == 32
    assert conf.seconds("ipc_timeout") == 3600
    assert conf.flag("smtputf8_enable") is False
    assert conf.number("tlsmgr_worker_processes") == 0
    assert conf.flag("tlsmgr_session_encryption") is True
    assert conf.seconds("tlsmgr_statistics_interval") == 600
    for cache_type in CACHE_TYPES:
        assert conf.text(f"{cache_type}_tls_session_cache_database") == ""
        assert conf.seconds(f"{cache_type}_tls_session_cache_timeout") == 3600
        assert conf.number(f"{cache_type}_tls_session_cache_size_limit") == 128 * 1024 * 1024
        assert conf.number(f"{cache_type}_tls_session_cache_entry_limit") == 0


def test_main_cf_then_options_win_over_what_was_before(tmp_path: Path) -> None:
    defaults = {"queue_directory": "/q0", "data_directory": "/d0", "mail_owner": "m0"}
    conf, warnings = load_texts(
        tmp_path,
        "queue_directory = /q1\ndata_directory = /d1\nx = 1\n",
        None,
        "queue_directory = /q2",
        "queue_directory=/q3/$x",
        defaults=defaults,
    )
    assert conf.text("mail_owner") == "m0"
    assert conf.text("data_directory") == "/d1"
    assert conf.text("queue_directory") == "/q3/1"
    assert warnings == []


def test_our_parameters_come_from_tlsmgr_cf_and_options(tmp_path: Path) -> None:
    conf, warnings = load_texts(
        tmp_path,
        "megabytes = 2\n",
        "# ours\ntlsmgr_worker_processes = 3\nsmtp_tls_session_cache_size_limit =\n"
        "  ${megabytes?$megabytes}000000\nlmtp_tls_session_cache_entry_limit = 10\n",
        "tlsmgr_worker_processes = 4",
        "tlsmgr_statistics_interval = 2m",
        "tlsmgr_session_encryption = No",
    )
    assert warnings == []
    assert conf.number("tlsmgr_worker_processes") == 4
    assert conf.seconds("tlsmgr_statistics_interval") == 120
    assert conf.flag("tlsmgr_session_encryption") is False
    assert conf.number("smtp_tls_session_cache_size_limit") == 2000000
    assert conf.number("lmtp_tls_session_cache_entry_limit") == 10


def test_our_parameters_have_no_effect_in_main_cf(tmp_path: Path) -> None:
    conf, warnings = load_texts(
        tmp_path,
        "tlsmgr_worker_processes = 7\ntls_random_source = [$tlsmgr_worker_processes]\n",
        "smtp_tls_session_cache_entry_limit = $tlsmgr_worker_processes\n",
    )
    assert conf.number("tlsmgr_worker_processes") == 0
    assert conf.number("smtp_tls_session_cache_entry_limit") == 0
    assert conf.text("tls_random_source") == "[]"
    assert warnings == [
        f"{tmp_path}/main.cf: ignoring tlsmgr_worker_processes: "
        "this parameter belongs in tlsmgr.cf",
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "smtp_tls_session_cache_timeout = 8640001",
            "invalid smtp_tls_session_cache_timeout: 8640001 (max 8640000)",
        ),
        (
            "lmtp_tls_session_cache_timeout = -1",
            "parameter lmtp_tls_session_cache_timeout: bad time value or unit: -1",
        ),
        ("tls_random_bytes = 0", "invalid tls_random_bytes parameter value 0 < 1"),
        ("tls_random_bytes = 32k", "bad numerical configuration: tls_random_bytes = 32k"),
        ("mail_owner =", "bad string length 0 < 1: mail_owner = "),
        ("smtputf8_enable = 1", "bad boolean configuration: smtputf8_enable = 1"),
        ("compatibility_level = x", 'malformed compatibility level syntax: "x"'),
        (
            "syslog_facility = MAIL",
            "file {}/main.cf: parameter syslog_facility: unrecognized value: MAIL",
        ),
        ("foo", "{}/main.cf, line 1: missing '=' after attribute name: \"foo\""),
    ],
)
def test_a_mistake_in_main_cf_is_fatal_with_the_text_of_postfix(
    tmp_path: Path, line: str, text: str
) -> None:
    with pytest.raises(Fatal) as caught:
        load_texts(tmp_path, f"{line}\n")
    assert caught.value.text == text.format(tmp_path)


def test_an_option_without_a_value_is_fatal_as_in_postfix(tmp_path: Path) -> None:
    with pytest.raises(Fatal) as caught:
        load_texts(tmp_path, "", None, "tlsmgr_worker_processes")
    assert caught.value.text == (
        "invalid \"-o tlsmgr_worker_processes\" option value: missing '=' after attribute name"
    )


def test_values_refer_to_defaults_that_nothing_here_reads(tmp_path: Path) -> None:
    reference = "tls_random_source = $mail_name,$fork_attempts\n"
    assert load_texts(tmp_path, reference)[0].text("tls_random_source") == "Postfix,5"
    conf, _ = load_texts(tmp_path, f"mail_name = X\n{reference}")
    assert conf.text("tls_random_source") == "X,5"


def test_a_missing_main_cf_is_fatal_unless_it_is_optional(tmp_path: Path) -> None:
    with pytest.raises(Fatal) as caught:
        load(str(tmp_path), pytest.fail)
    assert caught.value.text == f"open {tmp_path}/main.cf: No such file or directory"
    conf = load(
        str(tmp_path),
        pytest.fail,
        optional=True,
        defaults={"queue_directory": "$config_directory/q"},
    )
    assert conf.text("queue_directory") == f"{tmp_path}/q"


def test_names_of_the_process(tmp_path: Path) -> None:
    write_settled(
        tmp_path / "main.cf",
        "service_name = x\nprocess_id = 1\ntls_random_source = "
        "$process_name,$service_name,$process_id\nsyslog_name = [$process_id]$service_name\n",
    )
    conf = load(str(tmp_path), pytest.fail, process_name="pytls", service_name="tlsmgr2")
    assert conf.text("tls_random_source") == f"pytls,tlsmgr2,{os.getpid()}"
    assert conf.text("syslog_name") == "[1]tlsmgr2"


def test_names_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(main_cf: str, host: str) -> tuple[str, str]:
        uname = os.uname_result(("Linux", host, "6", "1", "x86_64"))
        monkeypatch.setattr(os, "uname", lambda: uname)
        conf, _ = load_texts(tmp_path, main_cf)
        return conf.text("myhostname"), conf.text("mydomain")

    assert names("", "mx.example.com") == ("mx.example.com", "example.com")
    assert names("", "mx") == ("mx.localdomain", "localdomain")
    assert names("mydomain = example.org\n", "mx") == ("mx.example.org", "example.org")
    assert names("myhostname = $x\nx = a.b.c\n", "mx") == ("a.b.c", "b.c")
    assert names("myhostname = a\n", "mx") == ("a", "localdomain")


def test_multi_instance_name_is_part_of_the_log_tag(tmp_path: Path) -> None:
    conf, _ = load_texts(tmp_path, "multi_instance_name = postfix-out\n")
    assert conf.text("syslog_name") == "postfix-out"


def test_accessors_refuse_other_types_and_unknown_names(tmp_path: Path) -> None:
    conf, _ = load_texts(tmp_path)
    with pytest.raises(TypeError):
        conf.text("tls_random_bytes")
    with pytest.raises(TypeError):
        conf.number("tlsmgr_session_encryption")
    with pytest.raises(TypeError):
        conf.seconds("tls_random_source")
    with pytest.raises(TypeError):
        conf.flag("tls_random_bytes")
    with pytest.raises(KeyError):
        conf.text("relayhost")


def test_a_configuration_does_not_change(tmp_path: Path) -> None:
    conf, _ = load_texts(tmp_path)
    with pytest.raises(AttributeError):
        conf.directory = "/"  # type: ignore[misc]
    with pytest.raises(TypeError):
        conf.values["tls_random_bytes"] = 1  # type: ignore[index]


def test_mail_config_names_the_directory() -> None:
    assert directory_of({}) == "/etc/postfix"
    assert directory_of({"MAIL_CONFIG": "/etc/postfix-out"}) == "/etc/postfix-out"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([row.name for row in PARAMETERS]),
            st.text(st.sampled_from("0123456789 smhyeno${}?:=<\udcfc"), max_size=8),
        ),
        max_size=4,
    )
)
def test_no_values_raise_anything_but_fatal(
    tmp_path: Path, assignments: list[tuple[str, str]]
) -> None:
    options = [f"{name}={value}" for name, value in assignments]
    try:
        conf = load(str(tmp_path), lambda _: None, lambda _: None, overrides=options, optional=True)
    except Fatal as error:
        assert error.text  # noqa: PT017 - either outcome is good
    else:
        assert len(conf.values) == len(PARAMETERS)
