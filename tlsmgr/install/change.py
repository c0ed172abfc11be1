"""change - the steps of enable and disable, each a line of output, each with its undoing.

A step that changes something pushes onto an ExitStack what takes it back; the caller empties the
stack when all is well. Undoing goes as far as it can, says what it does, and is not interrupted.
"""

from __future__ import annotations

import contextlib
import signal

from tlsmgr.install.instance import Instance, Snapshot, wait_for
from tlsmgr.install.launcher import NAME, Content, Launcher
from tlsmgr.log import Fatal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RELEASE_TIME = 15.0  # seconds for master(8) to read its file; up to 2 it waits for a new main.cf


def say(text: str) -> None:
    """One line of what was done."""
    print(text, flush=True)


def install(launcher: Launcher, content: Content, undo: contextlib.ExitStack) -> bool:
    """Write the launcher if it is not so already; True when that was needed."""
    before, text = launcher.text(), launcher.rendered(content)
    if text == before:
        return False
    launcher.write(text)
    undo.callback(_put_launcher_back, launcher, before)
    say(f"installed {launcher.path}, which runs {content.checkout}")
    return True


def edit(instance: Instance, command: str, undo: contextlib.ExitStack) -> bool:
    """Have master.cf name the command; True when that was needed."""
    before = instance.service().command
    if before == command:
        return False
    undo.callback(_put_back, instance, instance.snapshot(), before)
    instance.set_command(command)
    say(f"{instance.master_cf}: changed the command of the service from {before} to {command}")
    return True


def reload(instance: Instance, command: str) -> None:
    """Have master(8) use that command, which master.cf names. Fatal when it then does not serve."""
    if not instance.runs():
        say("Postfix does not run: this takes effect when it starts")
        return
    ours, before = command == NAME, instance.tlsmgr()
    instance.reload()
    if not instance.serves_with(ours, before):
        _end_throttling(instance)
        if not instance.serves_with(ours, before):
            raise Fatal(f"{command} does not answer under master(8); the mail log has the reason")
    say(f"reloaded Postfix; running: {describe(instance)}")


def _end_throttling(instance: Instance) -> None:
    """Have a service that master(8) holds back for a minute forgotten, and taken up anew.

    A reload does not end that, whatever crashed before; to be gone for a moment does.
    """
    before = instance.snapshot()
    try:
        instance.remove_service()
        instance.reload()
        wait_for(instance.refuses, RELEASE_TIME)
    finally:
        instance.restore(before)
    instance.reload()


def release(launcher: Launcher, content: Content) -> None:
    """Write who still uses the launcher; it goes when nobody is left."""
    text = launcher.text()
    if text is None:
        return
    if any(_uses(directory) for directory in content.users):
        launcher.write(launcher.rendered(content))
        say(f"kept {launcher.path}, which other instances use")
    else:
        launcher.write(None)
        say(f"removed {launcher.path}")


def describe(instance: Instance) -> str:
    """Which tlsmgr runs, with its process id."""
    if not instance.runs():
        return "nothing: Postfix does not run"
    running = instance.tlsmgr()
    if running is None:
        return "nothing yet: it is started for its first client"
    return f"{NAME if running.ours else running.command}, pid {running.pid}"


def _uses(directory: str) -> bool:
    """Whether the instance, if it still exists, has ours in its master.cf."""
    try:
        return Instance(directory).service().command == NAME
    except Fatal:
        return False


# Back.


def _put_launcher_back(launcher: Launcher, before: str | None) -> None:
    launcher.write(before)
    say(f"{'removed' if before is None else 'put back'} {launcher.path}")


def _put_back(instance: Instance, before: Snapshot, command: str) -> None:
    """Restore master.cf, and have master(8) serve with what worked before."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    instance.restore(before)
    say(f"{instance.master_cf}: put back the command {command}")
    try:
        reload(instance, command)
    except Fatal as error:
        say(f"warning: {error.text}")
