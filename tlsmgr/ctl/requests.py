"""requests - the commands of tlsmgrctl that are one request each: seed, policy, lookup and so on.

Each function makes one call of the client library and returns the result. NotFound is an answer of
the server, not a failure; other errors are those of tlsmgr.client, and pass through.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping

from tlsmgr.client import Client
from tlsmgr.ctl.command import Argument, Command, NotFound, Result


def _seed(client: Client, arguments: Namespace) -> Result:
    return client.seed(arguments.n)


def _policy(client: Client, arguments: Namespace) -> Result:
    policy = client.policy(arguments.type)
    return [f"cachable {'yes' if policy.cachable else 'no'}", f"timeout {policy.timeout}"]


def _lookup(client: Client, arguments: Namespace) -> Result:
    session = client.lookup(arguments.type, arguments.id)
    if session is None:
        raise NotFound(f"no such session in the {arguments.type} cache")
    return session


def _update(client: Client, arguments: Namespace) -> Result:
    with open(0, "rb", closefd=False) as stdin:
        session = stdin.read()
    client.update(arguments.type, arguments.id, session)
    return []


def _delete(client: Client, arguments: Namespace) -> Result:
    if not client.delete(arguments.type, arguments.id):
        raise NotFound(f"no such session in the {arguments.type} cache")
    return []


def _tktkey(client: Client, arguments: Namespace) -> Result:
    key = client.ticket_key(arguments.name)
    if key is None:
        raise NotFound("no such session ticket key, or session tickets are off")
    return key.to_bytes()


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ArgumentTypeError(f"not a string of hexadecimal digit pairs: {text}") from None


ARGUMENTS: Mapping[str, Argument] = {
    "N": Argument("how many bytes, 1 to 255", type=int),
    "TYPE": Argument("smtpd, smtp or lmtp"),
    "ID": Argument("cache id, taken byte for byte; may be empty", type=os.fsencode),
    "NAME": Argument(
        "name of the key, 32 hexadecimal digits (16 bytes); default: the key for new tickets",
        type=_hex,
        optional=True,
        default=b"",
    ),
}

REQUESTS: Mapping[str, Command] = {
    "seed": Command(_seed, "print random bytes from the server's generator", ("N",), binary=True),
    "policy": Command(
        _policy,
        "print whether there is a session cache of that type, and how long a session lives in it",
        ("TYPE",),
        notes="Two lines, `cachable yes` or `cachable no`, and `timeout SECONDS`.",
    ),
    "lookup": Command(_lookup, "print a session", ("TYPE", "ID"), binary=True),
    "update": Command(
        _update,
        "store a session, read from standard input",
        ("TYPE", "ID"),
        notes="Standard input is stored byte for byte up to its end, as `lookup --raw` prints it.",
    ),
    "delete": Command(_delete, "remove a session", ("TYPE", "ID")),
    "tktkey": Command(
        _tktkey,
        "print a session ticket key, which is a secret",
        ("NAME",),
        binary=True,
        notes="88 bytes: name (16), cipher key (32), HMAC key (32), and the time from which it "
        "is not used for new tickets (8, native byte order, seconds).",
    ),
}
