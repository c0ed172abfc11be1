"""The path of the exchange file."""

import os
from pathlib import Path

import pytest

from tlsmgr.config.load import load
from tlsmgr.config.randomness import exchange_path
from tlsmgr.config.redirect import WritableDir

OURS = WritableDir("postfix", os.geteuid(), "/data")


def test_default(tmp_path: Path) -> None:
    conf = load(
        str(tmp_path), pytest.fail, defaults={"data_directory": str(tmp_path)}, optional=True
    )
    assert exchange_path(conf, OURS, pytest.fail) == f"{tmp_path}/prng_exch"


def test_no_exchange_file(tmp_path: Path) -> None:
    options = ("tls_random_exchange_name=",)
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    assert exchange_path(conf, OURS, pytest.fail) == ""


def test_an_exchange_file_in_the_directory_of_a_stranger_is_redirected(tmp_path: Path) -> None:
    options = (f"tls_random_exchange_name={tmp_path}/exch",)
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    warnings: list[str] = []
    writable = WritableDir("postfix", os.geteuid() + 1, "/data")
    assert exchange_path(conf, writable, warnings.append) == "/data/exch"
    assert warnings == [
        f"request to update file {tmp_path}/exch in non-postfix directory {tmp_path}",
        "redirecting the request to postfix-owned data_directory /data",
    ]
