"""Files for a directory of another user go to data_directory, with two warnings."""

import os
from pathlib import Path

import pytest

from tlsmgr.config.load import load
from tlsmgr.config.redirect import (
    WritableDir,
    base_name,
    directory_name,
    exchange_path,
    redirect,
)

OTHER_USER = os.geteuid() + 1


def test_a_directory_of_mail_owner_is_used_in_silence(tmp_path: Path) -> None:
    writable = WritableDir("postfix", os.geteuid(), "/data")
    path = f"{tmp_path}/prng_exch"
    assert redirect(path, f"file {path}", writable, pytest.fail) == path


def test_a_directory_that_is_missing_is_left_to_the_open(tmp_path: Path) -> None:
    writable = WritableDir("postfix", OTHER_USER, "/data")
    path = f"{tmp_path}/none/prng_exch"
    assert redirect(path, f"file {path}", writable, pytest.fail) == path


@pytest.mark.parametrize("name", ["prng_exch", "prng_exch/", "no.such.file"])
def test_a_directory_of_another_user_is_not_used(tmp_path: Path, name: str) -> None:
    warnings: list[str] = []
    writable = WritableDir("mailer", OTHER_USER, "/data")
    path = f"{tmp_path}/{name}"
    expected = f"/data/{name.rstrip('/')}"
    assert redirect(path, f"file {path}", writable, warnings.append) == expected
    assert warnings == [
        f"request to update file {path} in non-mailer directory {tmp_path}",
        "redirecting the request to mailer-owned data_directory /data",
    ]


def test_a_bare_name_is_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    warnings: list[str] = []
    writable = WritableDir("postfix", OTHER_USER, "/data")
    assert redirect("name", "file name", writable, warnings.append) == "/data/name"
    assert warnings[0] == "request to update file name in non-postfix directory ."


@pytest.mark.parametrize(
    ("path", "directory", "base"),
    [
        ("", ".", "."),
        ("/", "/", "/"),
        ("///", "/", "/"),
        ("name", ".", "name"),
        ("name//", ".", "name"),
        ("/name", "/", "name"),
        ("//name", "/", "name"),
        ("dir/name", "dir", "name"),
        ("dir//name/", "dir", "name"),
        ("/a/b/c", "/a/b", "c"),
        ("../c", "..", "c"),
    ],
)
def test_parts_of_a_path(path: str, directory: str, base: str) -> None:
    assert directory_name(path) == directory
    assert base_name(path) == base


def test_the_exchange_file_is_in_the_data_directory(tmp_path: Path) -> None:
    conf = load(
        str(tmp_path), pytest.fail, defaults={"data_directory": str(tmp_path)}, optional=True
    )
    writable = WritableDir("postfix", os.geteuid(), "/data")
    assert exchange_path(conf, writable, pytest.fail) == f"{tmp_path}/prng_exch"


def test_no_exchange_file(tmp_path: Path) -> None:
    options = ("tls_random_exchange_name=",)
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    assert exchange_path(conf, WritableDir("postfix", os.geteuid(), "/data"), pytest.fail) == ""


def test_an_exchange_file_in_the_directory_of_another_user_is_redirected(tmp_path: Path) -> None:
    options = (f"tls_random_exchange_name={tmp_path}/exch",)
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    warnings: list[str] = []
    writable = WritableDir("postfix", os.geteuid() + 1, "/data")
    assert exchange_path(conf, writable, warnings.append) == "/data/exch"
    assert len(warnings) == 2
