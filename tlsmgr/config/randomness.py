"""randomness - where the PRNG exchange file is.

Called once at start, as mail_owner, as the directory of the file is looked at: see `redirect`.
Nothing is opened here. Never fatal; a redirection brings Postfix's two warnings.

Rules: Postfix tlsmgr.c.
"""

from tlsmgr.config.load import Configuration
from tlsmgr.config.redirect import WritableDir, redirect
from tlsmgr.config.syntax import Warn


def exchange_path(conf: Configuration, writable: WritableDir, warn: Warn) -> str:
    """Return where the PRNG exchange file is after redirection; "" for none."""
    name = conf.text("tls_random_exchange_name")
    return redirect(name, f"file {name}", writable, warn) if name else ""
