"""The entropy source, the exchange file and their periods."""

import os
from pathlib import Path

import pytest

from tlsmgr.config.load import load
from tlsmgr.config.randomness import EntropySource, SourceKind, random_settings
from tlsmgr.config.redirect import WritableDir


@pytest.mark.parametrize(
    ("text", "kind", "path", "size"),
    [
        ("dev:/dev/urandom", SourceKind.DEVICE, "/dev/urandom", 255),
        ("egd:/run/egd", SourceKind.EGD, "/run/egd", 255),
        ("dev:", SourceKind.DEVICE, "", 255),
        ("/var/lib/random", SourceKind.FILE, "/var/lib/random", 1000),
        ("DEV:/dev/urandom", SourceKind.FILE, "DEV:/dev/urandom", 1000),
        ("", SourceKind.NONE, "", 1000),
    ],
)
def test_sources(tmp_path: Path, text: str, kind: SourceKind, path: str, size: int) -> None:
    options = (f"tls_random_source={text}", "tls_random_bytes=1000")
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    settings = random_settings(
        conf, WritableDir("postfix", os.geteuid(), "/data"), lambda _text: None
    )
    assert settings.source == EntropySource(text, kind, path, size)


def test_defaults(tmp_path: Path) -> None:
    conf = load(
        str(tmp_path), pytest.fail, defaults={"data_directory": str(tmp_path)}, optional=True
    )
    settings = random_settings(conf, WritableDir("postfix", os.geteuid(), "/data"), pytest.fail)
    assert settings.exchange_path == f"{tmp_path}/prng_exch"
    assert (settings.reseed_period, settings.update_period) == (3600, 3600)
    assert settings.source.size == 32


def test_long_periods_are_cut(tmp_path: Path) -> None:
    options = ("tls_random_reseed_period=20w", "tls_random_prng_update_period=8421504")
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    settings = random_settings(
        conf, WritableDir("postfix", os.geteuid(), "/data"), lambda _text: None
    )
    assert (settings.reseed_period, settings.update_period) == (8421504, 8421504)


def test_no_exchange_file(tmp_path: Path) -> None:
    options = ("tls_random_exchange_name=",)
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    settings = random_settings(conf, WritableDir("postfix", os.geteuid(), "/data"), pytest.fail)
    assert settings.exchange_path is None


def test_an_exchange_file_in_the_directory_of_a_stranger_is_redirected(tmp_path: Path) -> None:
    options = (f"tls_random_exchange_name={tmp_path}/exch",)
    conf = load(str(tmp_path), pytest.fail, overrides=options, optional=True)
    warnings: list[str] = []
    writable = WritableDir("postfix", os.geteuid() + 1, "/data")
    assert random_settings(conf, writable, warnings.append).exchange_path == "/data/exch"
    assert warnings == [
        f"request to update file {tmp_path}/exch in non-postfix directory {tmp_path}",
        "redirecting the request to postfix-owned data_directory /data",
    ]
