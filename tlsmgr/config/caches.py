"""caches - the settings of the three session caches.

The tables in main.cf say which caches exist. Each type of table selects our own store, which keeps
the sessions in a file `NAME.sessions` beside the file that Postfix would write. `cache_settings` is
pure; `cache_places` looks at directories, as mail_owner, because their owners count: see
`redirect`. No lock is taken, no file is opened.

Fatal, with Postfix's texts: two caches in one file, and a table of an unsupported type when
daemon_table_open_error_is_fatal is set. A warning: an unknown log level, which counts as none. A
table of an unsupported type is otherwise an `error` in the place of its cache, in which lookups
then find nothing.

Rules: Postfix tlsmgr.c, tls_misc.c, dict_open.c.
"""

import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tlsmgr.config.load import Configuration
from tlsmgr.config.parameters import CACHE_TYPES, NO
from tlsmgr.config.redirect import WritableDir, base_name, redirect
from tlsmgr.config.syntax import Warn
from tlsmgr.log import Fatal

SHORTEST_TIMEOUT = 120
"""Shortest life of a session in seconds, unless it is 0 (Postfix tls.h, TLS_SESSION_LIFEMIN)."""

FILE_TYPES = frozenset({"hash", "btree", "dbm", "lmdb", "cdb", "sdbm", "dbz"})
"""Types whose files may be redirected to data_directory (data_redirect.c)."""

SERVED_TYPES = frozenset({"hash", "btree", "dbm", "lmdb", "sdbm", "internal"})
"""Types that can be written to; each selects our store."""

REMOTE_TYPE = "memcache"
"""The type of a table that is kept by another server."""

QUIET_WORDS = (
    "0 none 1 routine summary untrusted peercert certmatch verbose dane ssl-debug "
    "ssl-handshake-packet-dump ssl-session-packet-dump trace"
)
CACHE_WORDS = "2 debug 3 ssl-expert 4 ssl-developer 5 6 7 8 9 cache"
"""Values of a TLS log level that do not turn on log lines about a cache, and those that do."""


@dataclass(frozen=True)
class CacheSettings:
    """The settings of one cache, from main.cf and tlsmgr.cf.

    `table` is the database as in main.cf, empty for none. `timeout` is in seconds, 0 for off;
    `size_limit` is in bytes; an `entry_limit` of 0 means no limit. `log_activity` turns on a log
    line for each event. `single_use` is one of SINGLE_USE.
    """

    cache_type: str
    table: str
    timeout: int
    size_limit: int
    entry_limit: int
    log_activity: bool
    single_use: str = NO

    @property
    def cachable(self) -> bool:
        """Whether the policy is to use the cache; that of an unsupported type counts too."""
        return bool(self.table) and self.timeout > 0

    @property
    def is_remote(self) -> bool:
        """Whether another server keeps the sessions, and no file of ours does."""
        return self.cachable and self.table.startswith(f"{REMOTE_TYPE}:")


class CachePlace(NamedTuple):
    """Where a cache is kept.

    `database` is its `type:name` after redirection; `path` our file, None for a table on another
    server, or of an unsupported type; `error` is then the reason.
    """

    database: str
    path: str | None
    error: str | None


def cache_settings(conf: Configuration, warn: Warn) -> tuple[CacheSettings, ...]:
    """Return the settings of the caches smtpd, smtp and lmtp, in that order. Looks at no file."""
    return tuple(_settings(conf, cache_type, warn) for cache_type in CACHE_TYPES)


def cache_places(
    conf: Configuration, settings: Sequence[CacheSettings], writable: WritableDir, warn: Warn
) -> tuple[CachePlace, ...]:
    """Return where each of the cachable ones is kept, in the same order; stats directories."""
    users: dict[str, str] = {}
    cachable = [cache for cache in settings if cache.cachable]
    places = tuple(_place(conf, cache, users, writable, warn) for cache in cachable)
    for place in places:
        if place.error and conf.flag("daemon_table_open_error_is_fatal"):
            raise Fatal(place.error)
    return places


def _settings(conf: Configuration, cache_type: str, warn: Warn) -> CacheSettings:
    timeout = session_timeout(conf.seconds(f"{cache_type}_tls_session_cache_timeout"))
    table = conf.text(f"{cache_type}_tls_session_cache_database")
    cachable = bool(table) and timeout > 0
    single_use = conf.text("tlsmgr_single_use_tickets") if cache_type != "smtpd" else NO
    if cachable and single_use != NO and table.startswith(f"{REMOTE_TYPE}:"):
        warn(f"tlsmgr_single_use_tickets has no effect on the {cache_type} cache, {table}")
        single_use = NO
    return CacheSettings(
        cache_type=cache_type,
        table=table,
        timeout=timeout,
        size_limit=conf.number(f"{cache_type}_tls_session_cache_size_limit"),
        entry_limit=conf.number(f"{cache_type}_tls_session_cache_entry_limit"),
        log_activity=cachable and _logs_caches(conf, f"{cache_type}_tls_loglevel", warn),
        single_use=single_use,
    )


def _place(
    conf: Configuration,
    cache: CacheSettings,
    users: dict[str, str],
    writable: WritableDir,
    warn: Warn,
) -> CachePlace:
    """Return where one cache is; `users` maps the tables and files in use to caches."""
    _claim(cache.table, cache.table, cache.cache_type, users)
    kind, name = _split_table(cache.table, conf.text("default_database_type"))
    if cache.is_remote:
        return CachePlace(cache.table, None, None)
    error = _table_error(kind, name)
    name = _redirected(kind, name, cache.table, writable, warn)
    if error:
        return CachePlace(f"{kind}:{name}", None, error)
    path = f"{name}.sessions"
    _claim(os.path.normpath(path), cache.table, cache.cache_type, users)
    return CachePlace(f"{kind}:{name}", path, None)


def _claim(key: str, table: str, cache_type: str, users: dict[str, str]) -> None:
    """Record that a cache uses a table or a file; raise Fatal when another cache uses it."""
    user = users.setdefault(key, cache_type)
    if user != cache_type:
        raise Fatal(f"do not use the same TLS cache file {table} for {user} and {cache_type}")


def session_timeout(seconds: int) -> int:
    """Return the lifetime of a session that is in force: 0, or at least two minutes."""
    return max(seconds, SHORTEST_TIMEOUT) if seconds > 0 else 0


def _split_table(table: str, default_type: str) -> tuple[str, str]:
    """Return type and name of a database; without `type:` it is of the default type."""
    kind, colon, name = table.partition(":")
    return (kind, name) if colon else (default_type, table)


def _table_error(kind: str, name: str) -> str | None:
    """Return why a database is unsupported, with the text of Postfix's dict_open.c, or None."""
    if not kind or (not name and kind not in FILE_TYPES):
        return f'open dictionary: expecting "type:name" form instead of "{kind}:{name}"'
    if kind not in SERVED_TYPES:
        return f"unsupported dictionary type: {kind}"
    return None


def _redirected(kind: str, name: str, table: str, writable: WritableDir, warn: Warn) -> str:
    """Return the name of a database after redirection.

    Postfix keeps `internal:` in the memory of its one process; with several processes it is a file.
    """
    if kind == "internal":
        return f"{writable.data_directory}/{base_name(name)}"
    if kind in FILE_TYPES:
        return redirect(name, f"table {table}", writable, warn)
    return name


def _logs_caches(conf: Configuration, name: str, warn: Warn) -> bool:
    """Return whether the TLS log level in parameter `name` turns on log lines about the cache."""
    value = conf.text(name)
    words = [word for word in re.split(r"[, \t\r\n]+", value) if word]
    for word in words:
        if word.lower() not in f"{QUIET_WORDS} {CACHE_WORDS}".split():
            warn(f'unknown {name} value "{word}" in "{value}"')
            return False
    return any(word.lower() in CACHE_WORDS.split() for word in words)
