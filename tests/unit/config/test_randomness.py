"""The exchange file and the period of its updates."""

import os
from pathlib import Path

import pytest

from tlsmgr.config.load import load
from tlsmgr.config.randomness import random_settings
from tlsmgr.config.redirect import WritableDir

WRITABLE = WritableDir("postfix", os.geteuid(), "/data")


def test_defaults(tmp_path: Path) -> None:
    conf = load(
        str(tmp_path), pytest.fail, defaults={"data_directory": str(tmp_path)}, optional=True
    )
    settings = random_settings(conf, WRITABLE, pytest.fail)
    assert settings.exchange_path == f"{tmp_path}/prng_exch"
    assert settings.update_period == 3600


def test_the_update_period_is_that_of_main_cf(tmp_path: Path) -> None:
    options = ("tls_random_prng_update_period=20w", "tls_random_reseed_period=5")
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    assert random_settings(conf, WRITABLE, lambda _text: None).update_period == 20 * 7 * 86400


def test_no_exchange_file(tmp_path: Path) -> None:
    options = ("tls_random_exchange_name=",)
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    assert random_settings(conf, WRITABLE, pytest.fail).exchange_path is None


def test_an_exchange_file_in_the_directory_of_another_user_is_redirected(tmp_path: Path) -> None:
    options = (f"tls_random_exchange_name={tmp_path}/exch",)
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    warnings: list[str] = []
    writable = WritableDir("postfix", os.geteuid() + 1, "/data")
    assert random_settings(conf, writable, warnings.append).exchange_path == "/data/exch"
    assert warnings == [
        f"request to update file {tmp_path}/exch in non-postfix directory {tmp_path}",
        "redirecting the request to postfix-owned data_directory /data",
    ]
