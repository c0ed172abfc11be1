"""The parameter table is sound in itself, and has the defaults of Postfix."""

import os
import shutil
import subprocess

import pytest

from tlsmgr.config.expand import expand
from tlsmgr.config.mail_params import COMMON
from tlsmgr.config.parameters import OURS, PARAMETERS, TLSMGR
from tlsmgr.config.postfix_names import is_postfix_name
from tlsmgr.config.values import Kind, Parameter, convert

POSTCONF = shutil.which("postconf") or "/usr/sbin/postconf"

needs_postconf = pytest.mark.skipif(not os.path.exists(POSTCONF), reason="postconf is missing")

COMPUTED = {"myhostname", "mydomain"}

NEWER = {"default_cache_db_type"}
"""Parameters of Postfix 3.11."""

DISTRIBUTORS = {"default_database_type", "data_directory", "queue_directory"}
"""Parameters whose default is chosen when Postfix is built."""


def names(rows: tuple[Parameter, ...]) -> list[str]:
    return [row.name for row in rows]


def test_no_name_is_there_twice() -> None:
    assert len(set(names(PARAMETERS))) == len(PARAMETERS)


def test_own_names_have_a_prefix_that_postfix_does_not_use() -> None:
    for name in names(OURS):
        assert name.startswith("tlsmgr_") or "_tls_session_cache_" in name
    assert not set(names(OURS)) & set(names(COMMON + TLSMGR))


@pytest.mark.parametrize("row", PARAMETERS, ids=names(PARAMETERS))
def test_every_default_is_a_good_value(row: Parameter) -> None:
    if row.name in COMPUTED:
        assert row.default == ""
        return
    known = {"compatibility_level": "0", "data_directory": "/var/lib/postfix"}
    text = expand(row.default, known, pytest.fail)
    value = convert(row.kind, row.name, text, row.minimum, row.maximum)
    assert str(value) != "" or row.kind in (Kind.TEXT, Kind.PATH)


@pytest.mark.parametrize("row", OURS, ids=names(OURS))
def test_our_defaults_refer_to_nothing(row: Parameter) -> None:
    """A default replaces a bad value, so it must be good with any other values."""
    assert "$" not in row.default
    assert row.default or row.kind in (Kind.PATH, Kind.TEXT)


@pytest.mark.parametrize("row", PARAMETERS, ids=names(PARAMETERS))
def test_every_purpose_is_a_sentence(row: Parameter) -> None:
    assert row.purpose[0].isupper()
    assert row.purpose.endswith(".")
    assert ".." not in row.purpose
    assert "  " not in row.purpose


def test_tlsmgr_evaluates_times_then_numbers_then_texts() -> None:
    kinds = [row.kind for row in TLSMGR]
    assert kinds == [Kind.TIME] * 5 + [Kind.NUMBER] + [Kind.TEXT] * 8


@needs_postconf
def test_defaults_are_those_of_postconf() -> None:
    rows = [row for row in COMMON + TLSMGR if row.name not in COMPUTED | NEWER | DISTRIBUTORS]
    done = subprocess.run(
        [POSTCONF, "-d", *names(tuple(rows))],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.splitlines() == [f"{row.name} = {row.default}".strip() for row in rows]


@needs_postconf
def test_every_name_that_postconf_knows_is_postfix_s() -> None:
    shown = subprocess.run(
        [POSTCONF, "-d", "-H"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split()
    assert len(shown) > 900
    assert [name for name in shown if not is_postfix_name(name)] == []


@pytest.mark.parametrize("name", ["", "smtp", "smtpd_bannner", "tlsmgr_worker_processes", "_cost"])
def test_other_names_are_not_postfix_s(name: str) -> None:
    assert not is_postfix_name(name)


def test_names_of_any_transport_are_postfix_s() -> None:
    assert is_postfix_name("mytransport_destination_concurrency_limit")
    assert not is_postfix_name("mytransport_destination_concurrency_limits")
