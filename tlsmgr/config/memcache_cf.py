"""memcache_cf - the file of a `memcache:` table, as in memcache_table(5).

Its syntax is that of main.cf, without $-expansion. The parent reads it once, before the jail. Not
all of it has a meaning for a session cache:

    backup                  ignored, with a warning
    max_try, retry_pause    ignored: no client waits for another try
    line_size_limit         ignored: the client library has no such limit
    key_format              only with %s, %S and %%: a cache id is no mail address
    domain                  an error, for the same reason: Postfix then caches nothing

A mistake is a BadTable with one reason; the caller names the file, logs it, and that cache finds
nothing. Nothing is logged here but warnings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tlsmgr.config import syntax
from tlsmgr.config.syntax import Warn
from tlsmgr.log import Fatal

DEFAULTS: Mapping[str, str] = {
    "memcache": "inet:localhost:11211",
    "backup": "",
    "flags": "0",
    "ttl": "3600",
    "key_format": "%s",
    "domain": "",
    "data_size_limit": "10240",
    "line_size_limit": "1024",
    "max_try": "2",
    "retry_pause": "1",
    "timeout": "2",
}
_NUMBERS = ("flags", "ttl", "data_size_limit", "line_size_limit", "max_try", "retry_pause")
_INET = re.compile(r"inet:(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):(\w+)")
_FORMAT = re.compile(r"(?:[^%]|%[sS%])*")


class BadTable(Exception):
    """The table cannot be used; the text is the reason."""


@dataclass(frozen=True)
class MemcacheTable:
    """The parameters that count. ``host`` is empty for a UNIX-domain socket at ``path``.

    ``ttl`` and ``timeout`` are in seconds, ``data_size_limit`` is in bytes.
    """

    host: str
    port: str
    path: str
    key_format: str
    ttl: int
    flags: int
    timeout: int
    data_size_limit: int


def load(path: str, warn: Warn) -> MemcacheTable:
    """Return the table that a file describes. Raises BadTable."""
    if not path.startswith(("/", ".")):
        raise BadTable("its parameters in main.cf are not supported; name a file")
    try:
        given = syntax.load(path, warn)
    except FileNotFoundError as error:
        raise BadTable(f"open {path}: {error.strerror}") from None
    except Fatal as error:
        raise BadTable(error.text) from None
    values = {**DEFAULTS, **given}
    if values["backup"]:
        warn(f"{path}: backup is ignored: a session cache has no backup")
    if values["domain"]:
        raise BadTable("domain is not supported: a cache id is no mail address")
    if not _FORMAT.fullmatch(values["key_format"]):
        raise BadTable(f'key_format "{values["key_format"]}": only %s, %S and %% are supported')
    return _table(values)


def _table(values: Mapping[str, str]) -> MemcacheTable:
    numbers = {name: _number(name, values[name], 0) for name in _NUMBERS}
    host, port, path = _server(values["memcache"])
    return MemcacheTable(
        host=host,
        port=port,
        path=path,
        key_format=values["key_format"],
        ttl=numbers["ttl"],
        flags=numbers["flags"],
        timeout=_number("timeout", values["timeout"], 1),
        data_size_limit=numbers["data_size_limit"],
    )


def _server(text: str) -> tuple[str, str, str]:
    if text.startswith("unix:/"):
        return "", "", text.removeprefix("unix:")
    match = _INET.fullmatch(text)
    if match is None:
        raise BadTable(f'bad memcache server "{text}"')
    return match[1] or match[2], match[3], ""


def _number(name: str, text: str, minimum: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < minimum:
        raise BadTable(f'bad {name} "{text}"')
    return int(text)
