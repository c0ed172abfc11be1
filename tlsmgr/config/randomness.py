"""The settings of the entropy source and the exchange file.

Called once by the daemon, as mail_owner, as the exchange file's directory is looked at: see
`redirect`; `entropy_source` alone is pure and is called before, as root. Nothing is opened here.
Never fatal; each redirection brings Postfix's two warnings.

Rules: Postfix tlsmgr.c.
"""

from dataclasses import dataclass
from enum import Enum

from tlsmgr.config.load import Configuration
from tlsmgr.config.redirect import WritableDir, redirect
from tlsmgr.config.syntax import Warn

PERIOD_LIMIT = (2**31 - 1) // 255
"""Longest period in seconds that is used, so that a random part of it fits a C int (tlsmgr.c)."""

DEVICE_BYTES_LIMIT = 255
"""Most bytes taken at once from a device or a socket (tls_prng.h)."""


class SourceKind(Enum):
    """What tls_random_source names; the value is its prefix."""

    NONE = "none"
    DEVICE = "dev:"
    EGD = "egd:"
    FILE = ""


@dataclass(frozen=True)
class EntropySource:
    """An entropy source: `text` as in main.cf, `path` without prefix, `size` in bytes a reading."""

    text: str
    kind: SourceKind
    path: str
    size: int


@dataclass(frozen=True)
class RandomSettings:
    """The entropy source, the exchange file (None for none), and two periods in seconds."""

    source: EntropySource
    exchange_path: str | None
    reseed_period: int
    update_period: int


def entropy_source(conf: Configuration) -> EntropySource:
    """Split tls_random_source; the prefixes are case-sensitive."""
    text = conf.text("tls_random_source")
    size = conf.number("tls_random_bytes")
    for kind in (SourceKind.DEVICE, SourceKind.EGD):
        if text.startswith(kind.value):
            path = text[len(kind.value) :]
            return EntropySource(text, kind, path, min(size, DEVICE_BYTES_LIMIT))
    return EntropySource(text, SourceKind.FILE if text else SourceKind.NONE, text, size)


def random_settings(conf: Configuration, writable: WritableDir, warn: Warn) -> RandomSettings:
    """All settings of the pool."""
    name = conf.text("tls_random_exchange_name")
    return RandomSettings(
        source=entropy_source(conf),
        exchange_path=redirect(name, f"file {name}", writable, warn) if name else None,
        reseed_period=min(conf.seconds("tls_random_reseed_period"), PERIOD_LIMIT),
        update_period=min(conf.seconds("tls_random_prng_update_period"), PERIOD_LIMIT),
    )
