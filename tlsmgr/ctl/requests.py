"""requests - the commands of tlsmgrctl that are one request to the server: seed, policy and so on.

Each row of REQUESTS has a function that makes one call of the client library and returns the
result: bytes, or lines of text. It prints nothing. NotFound is an answer of the server, not a
failure; other errors are those of tlsmgr.client, and pass through.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tlsmgr.client import Client, TlsmgrError

LONGEST_SESSION = 32 << 20  # bytes that are read; Postfix's own takes many megabytes

Result = bytes | list[str]


class NotFound(TlsmgrError):
    """The server answered that there is no such session or key."""


@dataclass(frozen=True)
class Request:
    """One row: the function, its arguments by name, and the help text."""

    run: Callable[[Client, Namespace], Result]
    summary: str
    arguments: tuple[str, ...]
    binary: bool = False  # it has --raw
    notes: str = ""


@dataclass(frozen=True)
class Argument:
    """A positional argument, as argparse has it; ``type`` reads the text."""

    help: str
    type: Callable[[str], object] = str
    optional: bool = False
    default: object = None


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
        session = stdin.read(LONGEST_SESSION + 1)
    if len(session) > LONGEST_SESSION:
        raise TlsmgrError(f"standard input has more than {LONGEST_SESSION} bytes")
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

REQUESTS: Mapping[str, Request] = {
    "seed": Request(_seed, "print random bytes from the server's generator", ("N",), binary=True),
    "policy": Request(
        _policy,
        "print whether there is a session cache of that type, and how long a session lives in it",
        ("TYPE",),
        notes="Two lines, `cachable yes` or `cachable no`, and `timeout SECONDS`.",
    ),
    "lookup": Request(_lookup, "print a session", ("TYPE", "ID"), binary=True),
    "update": Request(
        _update,
        "store a session, read from standard input",
        ("TYPE", "ID"),
        notes="Standard input is stored byte for byte up to its end, as `lookup --raw` prints it.",
    ),
    "delete": Request(_delete, "remove a session", ("TYPE", "ID")),
    "tktkey": Request(
        _tktkey,
        "print a session ticket key, which is a secret",
        ("NAME",),
        binary=True,
        notes="88 bytes: name (16), cipher key (32), HMAC key (32), and the time from which it "
        "is not used for new tickets (8, native byte order, seconds).",
    ),
}
