"""jail - the only code that changes root directory or identity.

``Identity`` says who the daemon is going to be. Under master(8) that is mail_owner, and with the
chroot flag its world is the queue directory; started by hand it is whoever started it, and nothing
changes. Order and means are those of Postfix chroot_uid.c and set_eugid.c.

``preload`` uses once what Python loads only when it is first needed, since behind the wall there
is no library to load it from. Everything here is fatal when it fails: a daemon with the wrong
identity must not serve.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from tlsmgr.log import Fatal
from tlsmgr.sessions.record import DIGEST_BYTES, KEY_BYTES, Entry, Seal
from tlsmgr.sessions.store import SERIAL_BYTES, Record, Store, StoreError, StoreFile, create, remove


class Identity(NamedTuple):
    """The user whose files the daemon's are, and what of that it becomes.

    ``unprivileged``: it becomes that user for good (-u). ``chroots``: its root directory changes to
    the queue directory (-c). A process that is not root stays what it is.
    """

    name: str
    uid: int
    gid: int
    unprivileged: bool = False
    chroots: bool = False


@contextlib.contextmanager
def effective(identity: Identity) -> Iterator[None]:
    """As root: act as that user for a while, to open files (Postfix set_eugid.c).

    It decorates a function as well: when nobody becomes that user for good, the files that are made
    later are its all the same.
    """
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    if uid != 0 or identity.uid == 0:
        yield
        return
    os.setegid(identity.gid)
    os.setgroups([identity.gid])
    os.seteuid(identity.uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def enter(identity: Identity, root_directory: str) -> None:
    """Change the root directory and become the user, for good (Postfix chroot_uid.c)."""
    drops = identity.unprivileged and os.geteuid() == 0
    try:
        if drops:
            os.setgid(identity.gid)
            os.initgroups(identity.name, identity.gid)
        if identity.chroots:
            os.chroot(root_directory)
            os.chdir("/")
        if drops:
            os.setuid(identity.uid)
    except OSError as error:
        raise Fatal(f"cannot become user {identity.name}: {error.strerror}") from None


def preload(directory: int | None) -> None:
    """Use everything once that is loaded late: LMDB, ciphers, codecs, error texts.

    ``directory`` is one in which a cache will be kept; a scratch file is made there and removed.
    Without one there are no caches and nothing of LMDB is needed.
    """
    seal = Seal(bytes(KEY_BYTES), bytes(KEY_BYTES))
    digest, serial = bytes(DIGEST_BYTES), bytes(SERIAL_BYTES)
    data = seal.close(digest, serial, Entry(0, b"\xff".decode("utf-8", "replace").encode(), b""))
    assert seal.open(digest, serial, data) is not None
    assert seal.open(digest, serial, data[:-1]) is None
    if directory is not None:
        with contextlib.suppress(StoreError):
            file = StoreFile(directory, f"rehearsal-{os.getpid()}", 1 << 20)
            _use_a_store(file, Record(digest, serial, data))


def _use_a_store(file: StoreFile, record: Record) -> None:
    os.close(create(file))
    try:
        store = Store(file)
        with store.writing() as batch:
            batch.put(record)
        store.read(record.digest)
        store.read_from(b"", 1)
        store.clear_stale_readers()
        store.close()
    finally:
        remove(file)
    Store(file)  # which is not there: the way an error takes
