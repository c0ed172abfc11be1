"""jail - the only code that changes root directory or identity.

``Identity`` says which user the daemon becomes. Under master(8) that is mail_owner, and with the
chroot flag the root directory becomes the queue directory; a daemon started by hand stays the user
that started it. Order and calls are those of Postfix chroot_uid.c and set_eugid.c.

Everything here is fatal when it fails: a daemon with the wrong identity must not serve.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from tlsmgr.log import Fatal


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
