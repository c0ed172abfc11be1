"""check_facts - what `tlsmgrctl check` looks at, read once: files, postconf(1), the running daemon

The only part of `check` that reads anything; the checks themselves are pure. Nothing is changed,
and what cannot be read is a fact as well: a text in `problem`, None for a status or a service.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tlsmgr.client import TlsmgrError
from tlsmgr.config import syntax
from tlsmgr.config.accounts import look_up
from tlsmgr.config.caches import CacheSettings, cache_places, cache_settings
from tlsmgr.config.farm_caches import farm_caches
from tlsmgr.config.load import Configuration, load, state_directory
from tlsmgr.config.redirect import WritableDir
from tlsmgr.ctl.instance import Instance
from tlsmgr.ctl.status_fetch import fetch
from tlsmgr.farm import secret_file, store_url
from tlsmgr.farm.secret import BadSecret
from tlsmgr.install.instance import Postfix, Service
from tlsmgr.install.launcher import Launcher, Note, read_note
from tlsmgr.log import Fatal
from tlsmgr.status_object import Status

SHARED_MEMORY = "/dev/shm"
NO_NOTE = Note()
POSTFIX_NAMES = ("smtp_tls_security_level", "smtp_use_tls", "smtp_enforce_tls")
TIME_LIMIT = 5.0  # seconds for the running daemon to answer


@dataclass(frozen=True)
class FileFact:
    """A file or directory: who may change or read it. `mode` is None when there is none."""

    path: str
    mode: int | None
    uid: int = 0


@dataclass(frozen=True)
class Line:
    """An assignment in a file: its first and last line."""

    name: str
    value: str
    first: int
    last: int


@dataclass(frozen=True)
class SharedMemory:
    """The file system for shared memory: its mode, None when there is none, and free bytes."""

    path: str
    mode: int | None
    free: int


@dataclass(frozen=True)
class Facts:
    """All that the checks know. `problem` is why the configuration cannot be read."""

    instance: Instance
    scripts: str  # where the programs of this package are, for commands to run
    problem: str = ""
    main_cf: Mapping[str, str] = field(default_factory=dict)  # as written
    tlsmgr_cf: tuple[Line, ...] = ()
    errors: tuple[str, ...] = ()  # of our parameters
    caches: tuple[CacheSettings, ...] = ()
    cache_errors: Mapping[str, str] = field(default_factory=dict)  # by cache type
    ticket_lifetime: int = 0
    postfix: Mapping[str, str] = field(default_factory=dict)  # POSTFIX_NAMES, expanded
    service: Service | None = None  # of master.cf
    has_launcher: bool = True
    note: Note = NO_NOTE  # of the last start under the master(8) that runs
    owner_uids: frozenset[int] = frozenset((0,))
    files: tuple[FileFact, ...] = ()  # configuration: only root may change it
    session_files: tuple[FileFact, ...] = ()  # only mail_owner may read them
    secret_file: str = ""
    secret_problem: str = ""
    shared_memory: SharedMemory = SharedMemory(SHARED_MEMORY, 0o1777, 1 << 30)
    status: Status | None = None
    silence: str = ""  # why there is no status
    is_root: bool = True


def gather(instance: Instance, today: int, shared_memory: str = SHARED_MEMORY) -> Facts:
    """Return the facts about an instance. `today` is a day, as in farm.secret.

    The configuration directory of a daemon that was started by hand is the one that it names.
    """
    status, silence = _ask(instance.socket)
    if not instance.directory and status is not None:
        instance = instance._replace(directory=status.config_directory)
    facts: dict[str, Any] = {
        "instance": instance,
        "scripts": _scripts(),
        "shared_memory": _shared_memory(shared_memory),
        "status": status,
        "silence": silence,
        "is_root": os.geteuid() == 0,
    }
    try:
        facts |= _of_postfix(instance) if instance.is_postfix else {}
        facts |= _of_configuration(instance, facts.get("service"), today)
    except Fatal as error:
        facts["problem"] = error.text
    except OSError as error:
        facts["problem"] = f"{error.filename}: {error.strerror}"
    return Facts(**facts)


def _scripts() -> str:
    """Return where the programs are: in a checkout, or where pip put them."""
    scripts = os.path.abspath(f"{os.path.dirname(__file__)}/../../scripts")
    return scripts if os.path.exists(f"{scripts}/tlsmgrctl") else os.path.dirname(sys.executable)


def _ask(path: str) -> tuple[Status | None, str]:
    try:
        return fetch(path, TIME_LIMIT), ""
    except (TlsmgrError, OSError) as error:
        return None, str(error)


def _of_postfix(instance: Instance) -> dict[str, object]:
    """Return the facts of master.cf and postconf(1)."""
    postfix = Postfix(instance.directory)
    launcher = Launcher(postfix["daemon_directory"], postfix["command_directory"])
    note = read_note(postfix["queue_directory"])
    return {
        "service": postfix.service(),
        "has_launcher": launcher.text() is not None,
        "note": note if postfix.runs() and note.master == postfix.master_pid() else NO_NOTE,
        "postfix": postfix.values(*POSTFIX_NAMES),
    }


def _of_configuration(instance: Instance, service: object, today: int) -> dict[str, object]:
    """Return the facts of main.cf and tlsmgr.cf, and of the files that they name."""
    directory, errors = instance.directory, list[str]()
    if not directory:
        return {}
    arguments = service.arguments if isinstance(service, Service) else ""
    overrides = list(syntax.option_values(syntax.split_arguments(arguments)))
    defaults = {} if instance.is_postfix else {"data_directory": state_directory(os.environ)}
    conf = load(
        directory,
        _ignore,
        errors.append,
        overrides=overrides,
        defaults=defaults,
        optional=not instance.is_postfix,
    )
    caches = cache_settings(conf, _ignore)
    owner = look_up(conf).mail_owner
    uids = frozenset((0, owner.uid if owner and instance.is_postfix else os.geteuid()))
    names = ("main.cf", "tlsmgr.cf", "master.cf")
    return {
        "main_cf": _main_cf(f"{directory}/main.cf"),
        "tlsmgr_cf": _tlsmgr_cf(f"{directory}/tlsmgr.cf"),
        "errors": (*errors, *_farm_errors(conf)),
        "caches": caches,
        "ticket_lifetime": conf.seconds("smtpd_tls_session_cache_timeout"),
        "owner_uids": uids,
        "files": (_file(directory), *(_file(f"{directory}/{name}") for name in names)),
        **_of_places(conf, caches, max(uids)),
        **_of_secret(conf, uids, today),
    }


def _of_places(
    conf: Configuration, caches: tuple[CacheSettings, ...], owner: int
) -> dict[str, object]:
    """Return the facts of the files of sessions, and why a cache cannot be kept."""
    writable = WritableDir("mail_owner", owner, conf.text("data_directory"))
    cachable = [cache for cache in caches if cache.cachable]
    places = cache_places(conf, cachable, writable, _ignore)
    pairs = list(zip(cachable, places, strict=True))
    return {
        "cache_errors": {cache.cache_type: place.error for cache, place in pairs if place.error},
        "session_files": tuple(_file(place.path) for _, place in pairs if place.path),
    }


def _of_secret(conf: Configuration, owners: frozenset[int], today: int) -> dict[str, object]:
    path = conf.text("tlsmgr_farm_secret_file")
    problem = ""
    if path:
        try:
            secret_file.read(path, today, owners)
        except BadSecret as error:
            problem = str(error)
    return {"secret_file": path, "secret_problem": problem}


def _farm_errors(conf: Configuration) -> list[str]:
    """Return the mistakes in values that only a farm reads, with the daemon's texts."""
    errors: list[str] = []
    if not conf.text("tlsmgr_farm_store"):
        return errors
    try:
        store_url.parse(conf.text("tlsmgr_farm_store"))
    except store_url.BadUrl as error:
        errors.append(f"{conf.place('tlsmgr_farm_store')}: {error}")
    farm_caches(conf, errors.append)
    return errors


def _main_cf(path: str) -> dict[str, str]:
    try:
        return syntax.load(path, _ignore)
    except FileNotFoundError:
        return {}


def _tlsmgr_cf(path: str) -> tuple[Line, ...]:
    try:
        content = syntax.read(path)
        assignments = list(syntax.parse(content, path, _ignore))
    except (FileNotFoundError, Fatal):  # an error line of load() has the reason
        return ()
    last = {line.first: line.last for line in syntax.logical_lines(content)}
    return tuple(Line(name, value, first, last[first]) for name, value, first in assignments)


def _file(path: str) -> FileFact:
    try:
        status = os.stat(path)
    except OSError:
        return FileFact(path, None)
    return FileFact(path, status.st_mode & 0o7777, status.st_uid)


def _shared_memory(path: str) -> SharedMemory:
    try:
        room = os.statvfs(path)
    except OSError:
        return SharedMemory(path, None, 0)
    return SharedMemory(path, os.stat(path).st_mode & 0o7777, room.f_bavail * room.f_frsize)


def _ignore(_warning: str) -> None:
    """Drop a warning: the checks look at the same things themselves."""
