"""janitor_duties - the janitor's duties, as they follow from the configuration.

``locate`` finds the directories of the session files and of the exchange file, with Postfix's
redirection to data_directory, and opens them; it runs as mail_owner before the jail. Everything
else works on these descriptors and runs in the jail. A directory that can't be opened is one error
line and a cache that misses. Fatal: two caches in one file; a table that can't serve, if
daemon_table_open_error_is_fatal is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from tlsmgr import log
from tlsmgr.config.caches import CachePlace, CacheSettings, cache_places
from tlsmgr.config.load import Configuration
from tlsmgr.config.redirect import WritableDir, exchange_path
from tlsmgr.prng.exchange import ExchangeFile
from tlsmgr.prng.reseed import Reseeder
from tlsmgr.processes import jail
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.janitor import Duties, FileLocation, Located
from tlsmgr.sessions.file import CLOSED, StoreFile, map_size_for


def duties(
    conf: Configuration,
    identity: jail.Identity,
    settings: Sequence[CacheSettings],
    inherited: Inherited,
    reseeder: Reseeder,
) -> Duties:
    """Return the duties; called before the first fork."""
    alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    marks = [plan.shared.mark for plan in inherited.caches]
    for mark in marks:
        mark.alarm = alarm
    sizes = [map_size_for(plan.rules.size_limit) for plan in inherited.caches]

    def exchange_file(place: FileLocation | None) -> ExchangeFile:
        period = conf.seconds("tls_random_prng_update_period")
        if place is None:
            return ExchangeFile("", period, inherited.pool)
        return ExchangeFile(place.name, period, inherited.pool, place.descriptor)

    def store_files(located: Located) -> list[StoreFile | None]:
        return [
            None if place is None else StoreFile(place.descriptor, place.name, size, mark)
            for place, size, mark in zip(located.caches, sizes, marks)
        ]

    return Duties(
        locate=partial(_locate, conf, identity, settings),
        enter_jail=partial(jail.enter, identity, conf.text("queue_directory")),
        as_owner=partial(jail.effective, identity),
        exchange_file=exchange_file,
        store_files=store_files,
        reseeder=reseeder,
        damage_alarm=alarm,
    )


def _locate(
    conf: Configuration, identity: jail.Identity, settings: Sequence[CacheSettings]
) -> Located:
    with jail.effective(identity):
        writable = WritableDir(identity.name, identity.uid, conf.text("data_directory"))
        exchange = _exchange_directory(exchange_path(conf, writable, log.warning))
        cachable = [cache for cache in settings if cache.cachable]
        places = cache_places(conf, settings, writable, log.warning)
        return Located(exchange, tuple(map(_cache_directory, cachable, places)))


def _exchange_directory(path: str) -> FileLocation | None:
    """The exchange file tries to open its directory again later, so CLOSED is no error."""
    if not path:
        return None
    try:
        descriptor = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        log.warning(f"PRNG exchange file {path}: cannot open its directory: {error.strerror}")
        descriptor = CLOSED
    return FileLocation(descriptor, path)


def _cache_directory(cache: CacheSettings, place: CachePlace) -> FileLocation | None:
    if place.path is None:
        if place.error:
            log.error(place.error)
        return None
    directory, _, name = place.path.rpartition("/")
    try:
        descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.error(f"open {place.path}: {error.strerror}; sessions are not cached")
        return None
    if cache.log_activity:
        log.info(f"open {cache.cache_type} TLS cache {place.database}")
    log.info(f"{cache.cache_type} TLS session cache {place.database} is kept in {place.path}")
    return FileLocation(descriptor, name)
