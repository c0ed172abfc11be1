"""policy_digest - the TLS policy of Postfix's SMTP server, as digests that two starts compare.

A session of smtpd(8) can be resumed after its configuration was changed, so an admin who tightens
the rules for client certificates counts on a reload to end all sessions. The policy is every
parameter of main.cf that is for TLS in servers, expanded, the same in -o options of smtpd(8) and
tlsproxy(8) in master.cf, and the certificates of the CAs. Certificate, key and chain files are left
out, as their renewal is the usual reason of a reload, and so are log levels and the settings of the
session cache.

Reads master.cf and the CA files, as root, at the start. What can't be read or expanded counts as it
is written; nothing is fatal or logged.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import NamedTuple

from tlsmgr.config.expand import Malformed, try_expand
from tlsmgr.config.load import Configuration
from tlsmgr.config.syntax import (
    decode,
    logical_lines,
    option_values,
    split_arguments,
    split_nameval,
)
from tlsmgr.log import Fatal

SERVERS = ("smtpd", "tlsproxy")  # programs that take sessions up again
LONGEST_FILE = 16 << 20  # bytes of a CA file that count
DIGEST_CHARS = 32

_POLICY = re.compile(r"(smtpd_|tlsproxy_)?tls_|(smtpd|tlsproxy)_(use|enforce)_tls$")
_NO_POLICY = re.compile(
    r".*_((ec|d)?(cert|key)_file|chain_files|loglevel|session_cache_\w+)$|tls_random_"
)
_AUTHORITIES = ("_CAfile", "_CApath")
_FIRST_ARGUMENT = 8  # of the fields of master.cf


class Policy(NamedTuple):
    """The digest of each part, by a name for the log; and the files that the policy is in.

    Among the files are the directories of certificates.
    """

    digests: dict[str, str]
    files: list[str]


def read(conf: Configuration) -> Policy:
    """Return the policy. Looks at master.cf and the CA files."""
    settings = list(_settings(conf))
    authorities = [value for _, name, value in settings if value and name.endswith(_AUTHORITIES)]
    files = [f"{conf.directory}/main.cf", f"{conf.directory}/master.cf", *authorities]
    return Policy(_digests(settings), list(dict.fromkeys(files)))


def _digests(settings: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for label, name, value in settings:
        before = found.get(label, "")  # of another line for a service of this name
        found[label] = _digest((before + value).encode(errors="surrogateescape"))
        if value and name.endswith(_AUTHORITIES):
            found[f"the content of {label}"] = _digest(_content(value))
    return found


def summary(digests: Mapping[str, str]) -> str:
    """Return one digest of all parts."""
    return _digest(repr(sorted(digests.items())).encode())


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of the parts that differ."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _settings(conf: Configuration) -> Iterator[tuple[str, str, str]]:
    """Yield a name for the log, the parameter's name and its value."""
    main = _policy(conf.names)
    for name, value in main.items():
        yield name, name, value
    for service, options in _servers(f"{conf.directory}/master.cf"):
        for name, value in _policy({**conf.names, **options}).items():
            if name in options or value != main.get(name):
                yield f"{name} of {service} in master.cf", name, value


def _policy(names: Mapping[str, str]) -> dict[str, str]:
    """Return the policy for a server with these parameters, expanded."""
    return {name: _expanded(text, names) for name, text in names.items() if _is_policy(name)}


def _is_policy(name: str) -> bool:
    return bool(_POLICY.match(name)) and not _NO_POLICY.match(name)


def _servers(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the service and the assignments of each line of a server in master.cf."""
    for line in logical_lines(_content(path)):
        words = split_arguments(decode(line.text))
        if len(words) < _FIRST_ARGUMENT or words[_FIRST_ARGUMENT - 1] not in SERVERS:
            continue
        options = {}
        for option in option_values(words[_FIRST_ARGUMENT:]):
            with contextlib.suppress(ValueError):  # the server does not start with it
                name, value = split_nameval(option)
                options[name] = value
        yield words[0], options


def _expanded(text: str, names: Mapping[str, str]) -> str:
    try:
        return try_expand(text, names)
    except (Malformed, Fatal):
        return text


def _content(path: str) -> bytes:
    """Return what counts of a file, or the names in a directory of certificates by their hash."""
    try:
        if os.path.isdir(path):
            return "\n".join(sorted(os.listdir(path))).encode(errors="surrogateescape")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    with open(descriptor, "rb") as file:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return file.read(LONGEST_FILE) if is_file else b""


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()[:DIGEST_CHARS]
