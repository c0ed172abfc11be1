"""farm_plan - which caches are shared with other hosts, and how. Made by the parent.

A cache with a `memcache:` table is shared through that server alone, and has no file here. One in
tlsmgr_farm_caches is shared through tlsmgr_farm_store, beside its file. Each engine is a lane. All
that must be read as root is read here: files of passwords, secrets and tables.

Nothing is fatal: what cannot be used is one error line, and its caches are not shared. On a host
without a farm there is no plan, and no module of the farm is imported.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tlsmgr import log
from tlsmgr.config import memcache_cf
from tlsmgr.config.caches import CacheSettings
from tlsmgr.config.farm_caches import farm_caches
from tlsmgr.config.load import Configuration
from tlsmgr.farm import secret, secret_file, store_url
from tlsmgr.farm.codec import Codec
from tlsmgr.farm.day_secrets import DaySecrets
from tlsmgr.farm.engine import Settings
from tlsmgr.farm.memcache_table import MemcacheCodec
from tlsmgr.farm.seal import Keyring, SealedTable, first_day
from tlsmgr.shm import SharedMemory, SharedMemoryError

SEND_BUFFER = 1 << 20  # bytes between a worker and the farm process; the system may grant less
LONGEST_PASSWORD = 1024  # bytes

MakeCodec = Callable[[Keyring], Codec]


class _Unusable(Exception):
    """Something that was configured cannot be used; the text is the reason."""


@dataclass(frozen=True)
class FarmPlan:
    """All that the parent made. ``caches`` has the lane of each cache type that is shared.

    ``open_lanes`` has a byte for each lane, 1 while the engine may be asked: the keeper writes it.
    ``pairs`` has for each slot of a worker its own end of a socket pair, and the farm process's.
    """

    engines: tuple[Settings, ...] = field(repr=False)
    caches: Mapping[bytes, int]
    open_lanes: memoryview
    deadline: float
    pairs: Mapping[int, tuple[socket.socket, socket.socket]]
    codecs: Mapping[bytes, MakeCodec]
    secrets: DaySecrets | None

    def farm_ends(self) -> list[int]:
        """Return the descriptors that the farm process needs."""
        return [theirs.fileno() for _, theirs in self.pairs.values()]

    def make_codecs(self, salt: bytes) -> dict[bytes, Codec]:
        """Return the codecs of one process, whose salt that is."""
        secrets = self.secrets
        keyring = Keyring(secrets.of if secrets is not None else lambda day: None, salt)
        return {name: make(keyring) for name, make in self.codecs.items()}


class Maker:
    """Makes the plan: a lane for each engine, then what all of them need."""

    def __init__(
        self,
        conf: Configuration,
        settings: Sequence[CacheSettings],
        memory: SharedMemory,
        owner: int,
    ) -> None:
        self._conf = conf
        self._settings = [cache for cache in settings if cache.cachable]
        self._memory = memory
        self._owner = owner
        self._deadline = conf.milliseconds("tlsmgr_farm_deadline") / 1000
        self._engines: list[Settings] = []
        self._caches: dict[bytes, int] = {}
        self._codecs: dict[bytes, MakeCodec] = {}
        self._secrets: DaySecrets | None = None

    def make(self, workers: range) -> FarmPlan | None:
        """Return the plan; None when nothing can be shared."""
        if self._conf.text("tlsmgr_farm_store"):
            try:
                self._add_store()
            except _Unusable as error:
                place = self._conf.place("tlsmgr_farm_store")
                log.error(f"{place}: {error}; sessions are not shared")
        for cache in self._settings:
            if not cache.is_remote:
                continue
            try:
                self._add_memcache(cache)
            except memcache_cf.BadTable as error:
                log.error(f"{cache.table} is unavailable. {error}")
        if not self._caches:
            return None
        try:
            pairs = _pairs(workers)
        except OSError as error:
            log.error(f"no sockets for the farm process: {error.strerror}; sessions are not shared")
            return None
        return FarmPlan(
            engines=tuple(self._engines),
            caches=self._caches,
            open_lanes=self._memory.carve(len(self._engines)),
            deadline=self._deadline,
            pairs=pairs,
            codecs=self._codecs,
            secrets=self._secrets,
        )

    def _add_store(self) -> None:
        """Share the caches that are kept here through one engine, sealed."""
        shared = self._shared()
        if not shared:
            raise _Unusable("there is no session cache to share")
        try:
            url = store_url.parse(self._conf.text("tlsmgr_farm_store"))
        except store_url.BadUrl as error:
            raise _Unusable(str(error)) from None
        options = {"url": self._conf.text("tlsmgr_farm_store"), "password": self._password()}
        self._secrets = self._read_secrets(max(cache.timeout for cache in shared))
        for cache in shared:
            self._add(cache, _sealed(cache))
        self._engines.append(Settings("redis", url.shown, options, self._deadline))

    def _shared(self) -> list[CacheSettings]:
        """Return the caches with a file that tlsmgr_farm_caches names."""
        names = farm_caches(self._conf, log.error)
        caches = (cache for cache in self._settings if cache.cache_type in names)
        return [cache for cache in caches if not cache.is_remote]

    def _password(self) -> str:
        path = self._conf.text("tlsmgr_farm_store_password_file")
        if not path:
            return ""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                text = file.read(LONGEST_PASSWORD + 1)
        except OSError as error:
            raise _Unusable(f"open {path}: {error.strerror}") from None
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise _Unusable(f"{path}: other users have access to it; run chmod 600")
        line = text.splitlines()[0] if text.splitlines() else b""
        if not line or len(text) > LONGEST_PASSWORD:
            raise _Unusable(f"{path}: expected a password in the first line, and nothing more")
        return line.decode("utf-8", "surrogateescape")

    def _read_secrets(self, timeout: int) -> DaySecrets:
        path = self._conf.text("tlsmgr_farm_secret_file")
        if not path:
            raise _Unusable("tlsmgr_farm_secret_file is not set")
        now = int(time.time())
        try:
            secrets = secret_file.read(path, now // secret.DAY, (self._owner,))
            return DaySecrets(self._memory, secrets, first_day(now, timeout))
        except (secret.BadSecret, SharedMemoryError) as error:
            raise _Unusable(f"farm secret file {path}: {error}") from None

    def _add_memcache(self, cache: CacheSettings) -> None:
        path = cache.table.removeprefix("memcache:")
        table = memcache_cf.load(path, log.warning)
        options = {
            "host": table.host,
            "port": table.port,
            "path": table.path,
            "ttl": table.ttl,
            "flags": table.flags,
            "connect": float(table.timeout),
        }

        def codec(_: Keyring) -> MemcacheCodec:
            return MemcacheCodec(table.key_format, cache.timeout, table.ttl, table.data_size_limit)

        self._add(cache, codec)
        self._engines.append(Settings("memcache", cache.table, options, self._deadline))

    def _add(self, cache: CacheSettings, make_codec: MakeCodec) -> None:
        """Give a cache the lane that comes next."""
        name = cache.cache_type.encode()
        self._caches[name] = len(self._engines)
        self._codecs[name] = make_codec


def _sealed(cache: CacheSettings) -> MakeCodec:
    return lambda keyring: SealedTable(cache.cache_type, cache.timeout, keyring)


def _pairs(slots: range) -> dict[int, tuple[socket.socket, socket.socket]]:
    """Return for each slot the ends of a worker and of the farm process; neither blocks."""
    pairs = {}
    with contextlib.ExitStack() as on_failure:
        for slot in slots:
            pair = pairs[slot] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in pair:
                on_failure.enter_context(end)
                end.setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        on_failure.pop_all()
    return pairs
