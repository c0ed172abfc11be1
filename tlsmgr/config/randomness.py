"""randomness - where the exchange file goes, and how often it is written.

The daemon calls this once, as mail_owner, because the owner of the file's directory counts: see
`redirect`. Nothing is opened and nothing is fatal; a redirection is a warning.

Rules: Postfix tlsmgr.c.
"""

from typing import NamedTuple

from tlsmgr.config.load import Configuration
from tlsmgr.config.redirect import WritableDir, redirect
from tlsmgr.config.syntax import Warn


class RandomSettings(NamedTuple):
    """The exchange file (None for none), and the longest time between two updates in seconds."""

    exchange_path: str | None
    update_period: int


def random_settings(conf: Configuration, writable: WritableDir, warn: Warn) -> RandomSettings:
    """Return the settings of the exchange file."""
    name = conf.text("tls_random_exchange_name")
    return RandomSettings(
        exchange_path=redirect(name, f"file {name}", writable, warn) if name else None,
        update_period=conf.seconds("tls_random_prng_update_period"),
    )
