"""secret_file - the file with the secret of a farm: read with checks, made, and replaced.

The daemon reads it once, as root, before the jail; `tlsmgrctl farm` reads and writes it. A file
that others than its owner can read or write is refused, and so is one of another owner than root,
mail_owner or the user who runs the program. Every failure is a BadSecret with one reason; the
caller names the file and decides. Nothing is logged here.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Collection

from tlsmgr.farm.secret import SECRET_BYTES, BadSecret, Secret, Secrets, parse, to_text

LARGEST = 16384  # bytes: about 250 secrets, so that they fit into the shared memory


def read(path: str, today: int, owners: Collection[int] = ()) -> Secrets:
    """Return the secrets in the file. `owners` are user IDs besides root's and our own."""
    try:
        with open(path, "rb", opener=_open) as file:
            _check(os.fstat(file.fileno()), {0, os.geteuid(), *owners})
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise BadSecret(error.strerror or str(error)) from None
    if len(text) > LARGEST:
        raise BadSecret(f"larger than {LARGEST} bytes")
    return parse(text, today)


def create(path: str, day: int) -> None:
    """Make a file with a new secret that holds from `day` on; never replace a file."""
    text = to_text([Secret(day, secrets.token_bytes(SECRET_BYTES))])
    try:
        _write(path, text)
    except OSError as error:
        raise BadSecret(error.strerror or str(error)) from None


def replace(path: str, content: Secrets) -> None:
    """Put a file with these secrets in the place of this one, in one step."""
    path = os.path.realpath(path)
    temporary = f"{path}.{secrets.token_hex(4)}"
    try:
        status = os.stat(path)
        _write(temporary, to_text(content), (status.st_uid, status.st_gid))
        try:
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        _sync(os.path.dirname(path))
    except OSError as error:
        raise BadSecret(error.strerror or str(error)) from None


def _open(path: str, flags: int) -> int:
    """Open without waiting for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check(status: os.stat_result, owners: Collection[int]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BadSecret("not a regular file")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise BadSecret(f"other users have access to it (mode {mode:04o}); run chmod 600")
    if status.st_uid not in owners:
        raise BadSecret(f"owned by user ID {status.st_uid}, which is neither root nor mail_owner")


def _write(path: str, text: str, owner: tuple[int, int] | None = None) -> None:
    """Write a new file of mode 0600 to the disk; leave none behind after an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as file:
            if owner is not None:
                os.fchown(descriptor, *owner)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        os.unlink(path)
        raise


def _sync(directory: str) -> None:
    """Have the new name of a file survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
