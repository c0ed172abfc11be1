"""bootstrap - run the daemon for master(8), and leave a note when it does not start.

The launcher (see install/launcher.py) writes the note, then runs this file. The note says that a
start is under way, and under which master(8). It is emptied when a worker serves, or at an orderly
end. If the daemon cannot be imported or fails before that, the reason goes into the note, and this
process ends with status 0. master(8) then starts the launcher again for the next client, or for one
that lost its connection and asks again after a second; the launcher reads the note, logs one
warning with the reason, and runs Postfix's own tlsmgr. A process that dies without a chance to do
this leaves the note as it is, with the same effect. So no failure has to be handled in a process
that gave up its privileges.

The note stays open across the jail. Its only effect is which tlsmgr runs next, and for how long:
until the next reload. Without a note (a test start, a start by hand) a failure is fatal, as usual.

Runs in the parent only. Standard library only, as little of it as possible: each import here is one
more thing that can break, and that clients wait for at a reload. Before the daemon is imported, the
workers before it are told to serve meanwhile (see processes.bridge).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tlsmgr.processes.bridge import Met

LISTEN_FD = 6  # as in processes.master
NOTE = "pid/tlsmgr-prefork.start"  # in the queue directory, where master(8) starts us
REASON_LIMIT = 500  # bytes


class Note:
    """The record of this start; open until the daemon serves."""

    def __init__(self) -> None:
        self._file = -1
        self._master = os.getppid()
        if "GENERATION" in os.environ:  # set by master(8) only
            self._open()

    def _open(self) -> None:
        try:
            file = os.open(NOTE, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            return
        if os.read(file, 64) == f"starting {self._master}\n".encode():
            self._file = file
        else:
            os.close(file)

    def close(self) -> None:
        """Say that the daemon serves, or came to an orderly end."""
        if self._file >= 0:
            try:  # noqa: SIM105  # contextlib takes long to import
                os.truncate(self._file, 0)
            except OSError:
                pass  # then Postfix's own runs after the next reload; it is no reason to end
            self._forget()

    def fail(self, reason: str) -> bool:
        """Leave the reason to the launcher. Return False when there is no note, or it is closed."""
        if self._file < 0:
            return False
        text = "".join(char if char.isprintable() else "?" for char in reason)
        line = f"failed {self._master} {text}".encode(errors="replace")[:REASON_LIMIT]
        try:  # noqa: SIM105  # contextlib takes long to import
            os.pwrite(self._file, line + b"\n", 0)
        except OSError:
            pass  # then the launcher knows no reason
        self._forget()
        return True

    def _forget(self) -> None:
        os.close(self._file)
        self._file = -1


def main() -> int:
    """Import the daemon and run it. Return the exit status."""
    note = Note()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    early = _meet()
    try:
        from tlsmgr import daemon
    except Exception as error:
        reason = _why(error)
        if note.fail(reason):
            return 0
        print(f"tlsmgr: fatal: {reason}", file=sys.stderr)
        return 1
    return daemon.main(note.close, note.fail, early)


def _meet() -> Met | None:
    """Have the workers before us serve while the daemon is loaded. A failure shows up again."""
    if "GENERATION" not in os.environ:
        return None
    met = None
    try:
        from tlsmgr.processes import bridge

        met = bridge.meet(LISTEN_FD)
        if met.policy:
            from tlsmgr.processes import late_call

            late_call.consider(met, sys.argv[1:], os.environ)
    except Exception:
        pass
    return met


def _why(error: Exception) -> str:
    """Return the reason of a failed import, and its cause when the interpreter was replaced."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = f"{sys.prefix}/lib/{version}/site-packages"
    if sys.prefix != sys.base_prefix and not os.path.isdir(packages):
        return f"{sys.prefix} has no packages for {version}: {error}"
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to do, and master(8) waits
