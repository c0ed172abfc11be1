"""farm - tlsmgrctl farm: the secret from which the hosts of a farm derive their ticket keys

Without an action it prints, for each key that is known now, its time and the first 8 hexadecimal
digits of its name, which must be equal on all hosts. `new` makes a secret file, `advance` replaces
the secrets in one by those of today and later. It works on the file alone, for root as a rule; the
running daemon is not asked. No secret is ever printed.

The file and the lifetime of tickets are those of the configuration that -c names, or that is in
$MAIL_CONFIG or /etc/postfix; without main.cf the lifetime has its default. Warnings about the
configuration are left to the daemon. A failure is a TlsmgrError with one line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from tlsmgr.client import TlsmgrError
from tlsmgr.config.accounts import look_up
from tlsmgr.config.caches import session_timeout
from tlsmgr.config.load import Configuration, directory_of, load
from tlsmgr.farm import secret_file
from tlsmgr.farm.secret import (
    CLOCK_SKEW,
    DAY,
    BadSecret,
    Secrets,
    advance,
    date_text,
    day_of,
    first_day,
    known_slots,
    secret_of,
    slot_length,
    ticket_key,
)
from tlsmgr.log import Fatal

SUMMARY = "the secret of a farm of hosts, and its ticket keys"
DESCRIPTION = """\
Show which session ticket keys a farm of hosts has now: for each key its time
(UTC) and the first 8 hexadecimal digits of its name, which must be equal on all
hosts. Reads the secret file that tlsmgr.cf names; run it as root. See
tlsmgr-farm(7).
"""
FILE = "tlsmgr_farm_secret_file"
FINGERPRINT_BYTES = 4
EXIT_OK = 0

Action = Callable[[argparse.Namespace, int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `tlsmgrctl farm`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(action=_show)
    parser.add_argument(
        "-c",
        dest="directory",
        metavar="CONFIG_DIR",
        default=argparse.SUPPRESS,
        help="the directory with main.cf and tlsmgr.cf (default: MAIL_CONFIG, else /etc/postfix)",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    for name, summary, action in _ACTIONS:
        child = actions.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        child.set_defaults(action=action)
        child.add_argument("file", metavar="FILE", help="the secret file")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the action; return the exit status. Raises TlsmgrError."""
    arguments.action(arguments, int(time.time()))
    return EXIT_OK


def _show(arguments: argparse.Namespace, now: int) -> None:
    conf = _configuration(arguments)
    path, lifetime = conf.text(FILE), _lifetime(conf)
    if not path:
        raise TlsmgrError(f"{conf.directory}/tlsmgr.cf: {FILE} is not set")
    if not lifetime:
        raise TlsmgrError("session tickets are off: smtpd_tls_session_cache_timeout = 0")
    lines = view(path, _read(conf, path, now), lifetime, now)
    print("\n".join(lines))


def _new(arguments: argparse.Namespace, now: int) -> None:
    with _naming(arguments.file):
        secret_file.create(arguments.file, now // DAY)


def _advance(arguments: argparse.Namespace, now: int) -> None:
    """Tickets that are accepted now, on a host whose clock is behind too, keep their secret."""
    conf = _configuration(arguments)
    lifetime, earliest = _lifetime(conf), now - CLOCK_SKEW
    secrets = _read(conf, arguments.file, now)
    kept = advance(secrets, first_day(earliest, lifetime) if lifetime else earliest // DAY)
    if kept != secrets:
        with _naming(arguments.file):
            secret_file.replace(arguments.file, kept)


_ACTIONS: Sequence[tuple[str, str, Action]] = (
    ("new", "make a file with a new secret, which holds from today on", _new),
    ("advance", "replace the secrets in a file by those of today and later", _advance),
)


def view(path: str, secrets: Secrets, lifetime: int, now: int) -> list[str]:
    """Return the lines that show the keys that are known at `now`."""
    length = slot_length(lifetime)
    lines = [f"secret file {path}", f"ticket lifetime {lifetime} s, a key for each {length} s"]
    for slot in known_slots(now, lifetime):
        start = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(slot * length))
        use = {0: "  for new tickets", 1: "  next"}.get(slot - now // length, "")
        lines.append(f"{start}  {_fingerprint(secrets, slot, lifetime)}{use}")
    later = (secret.day for secret in secrets if secret.day > now // DAY)
    lines.extend(f"another secret holds from {date_text(day)} on" for day in later)
    return lines


def _fingerprint(secrets: Secrets, slot: int, lifetime: int) -> str:
    """Return the first digits of the name of a key, or why there is none."""
    day = day_of(slot, lifetime)
    secret = secret_of(secrets, day)
    if secret is None:
        return f"missing: no secret in the file holds on {date_text(day)}"
    return ticket_key(secret, slot, lifetime)[:FINGERPRINT_BYTES].hex()


def _configuration(arguments: argparse.Namespace) -> Configuration:
    def report(text: str) -> None:
        print(f"tlsmgrctl: {text}", file=sys.stderr)

    try:
        directory = arguments.directory or directory_of(os.environ)
        return load(directory, _ignore, report, optional=True)
    except Fatal as error:
        raise TlsmgrError(error.text) from None


def _lifetime(conf: Configuration) -> int:
    """Return the lifetime of a ticket in seconds, 0 for none."""
    return session_timeout(conf.seconds("smtpd_tls_session_cache_timeout"))


def _ignore(_warning: str) -> None:
    """Drop a warning about the configuration: the daemon logs it."""


def _read(conf: Configuration, path: str, now: int) -> Secrets:
    owner = look_up(conf).mail_owner
    with _naming(path):
        return secret_file.read(path, now // DAY, (owner.uid,) if owner else ())


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn a BadSecret into a TlsmgrError that names the file."""
    try:
        yield
    except BadSecret as error:
        raise TlsmgrError(f"{path}: {error}") from None
