"""tlsmgr-postfix(8) tried on private Postfix systems, through its script, as an admin uses it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.postfix_instance import PostfixInstance, postfix_missing, wait_until
from support.settled_files import write_settled
from support.switching_systems import (
    ROOT,
    answers,
    append,
    command,
    fields,
    finish,
    make_checkout,
    make_farm,
    private,
    reload,
    reload_to_postfixs_own,
    running,
    running_now,
    running_pid,
    switch,
    wrap_python,
    write_files,
)

from tlsmgr.install.launcher import NAME

pytestmark = pytest.mark.skipif(postfix_missing() is not None, reason=str(postfix_missing()))

ONLY_BY_HAND = '[ -z "$GENERATION" ] || exit 1\nexec "$real" "$@"\n'  # not under master(8)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that everybody may pass through."""
    path = Path(tempfile.mkdtemp(prefix="tlsmgr-switching-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def farm(scratch: Path) -> Path:
    """A daemon_directory of our own."""
    return make_farm(scratch / "sbin")


@pytest.fixture
def checkout(scratch: Path) -> Path:
    """A private checkout, at a place that has to be quoted."""
    return make_checkout(scratch / "check out's")


@pytest.fixture
def stopped(farm: Path) -> Iterator[PostfixInstance]:
    """A system that is configured and does not run."""
    system = private(farm)
    write_files(system)
    yield system
    system.__exit__(None)


def master_cf(system: PostfixInstance) -> bytes:
    return (system.config / "master.cf").read_bytes()


def test_mail_flows_with_sessions_reused_after_enable_and_after_disable(farm: Path) -> None:
    with private(farm, mail=True, chroot=True) as system:
        system.deliver()
        before = fields(system)

        first = switch(system, "enable")
        assert (first.status, running(first)) == (0, NAME), first.text
        assert [line.split()[0] for line in first.said] == [
            "test",
            "installed",
            f"{system.config}/master.cf:",
            "reloaded",
        ]
        assert fields(system) == [*before[:-1], NAME]
        system.deliver(3)
        assert len(system.log_lines(r"/smtp\[.*Reusing old session")) >= 2
        assert Path(f"/proc/{running_pid(system)}/comm").read_text() == "tlsmgr\n"

        shown = switch(system, "status")
        assert (shown.status, running(shown)) == (0, NAME), shown.text
        assert shown.said[0] == f"{system.config}: ours serves"
        assert str(ROOT) in shown.said[1]

        again = switch(system, "enable")
        assert (again.status, running(again)) == (0, NAME), again.text
        assert again.said[1].startswith("nothing to change")

        back = switch(system, "disable")
        assert (back.status, running(back)) == (0, "tlsmgr"), back.text
        assert fields(system) == before
        assert not list((system.queue / "pid").glob(f"{NAME}*"))
        system.deliver(2)

        again = switch(system, "disable")
        assert (again.status, len(again.said), running(again)) == (0, 1, "tlsmgr"), again.text
        shown = switch(system, "status")
        assert (shown.status, running(shown)) == (2, "tlsmgr"), shown.text
        assert shown.said[0] == f"{system.config}: not enabled"
        assert not system.log_lines("throttling|panic|does not start")


@pytest.mark.parametrize(
    "entry",
    [
        "tlsmgr\tunix  y - y\t500   1\ttlsmgr   -v  \n   -o  { tls_random_bytes =  16 }\n# end\n",
        "# tlsmgr unix - - y 1000? 1 tlsmgr\ntlsmgr unix - - y\n# why\n\n 1000?  1\n  tlsmgr\n",
        "tlsmgr unix - - y 1000? 1 tlsmgr\r\n",
    ],
)
def test_nothing_else_of_master_cf_changes(stopped: PostfixInstance, entry: str) -> None:
    path = stopped.config / "master.cf"
    path.write_text(f"postlog unix-dgram n - n - 1 postlogd\n{entry}# t\xfctig\n", "latin-1")
    path.chmod(0o640)
    os.chown(path, 0, 8)
    before = master_cf(stopped)

    outcome = switch(stopped, "enable")
    assert outcome.status == 0, outcome.text
    assert "not running" in outcome.said[-1]
    head, _, tail = before.rpartition(b"tlsmgr")
    assert master_cf(stopped) == head + NAME.encode() + tail
    assert (path.stat().st_mode & 0o777, path.stat().st_gid) == (0o640, 8)

    outcome = switch(stopped, "disable")
    assert outcome.status == 0, outcome.text
    assert master_cf(stopped) == before
    assert [entry.name for entry in stopped.config.iterdir()].count("master.cf") == 1


def test_the_options_on_the_line_reach_both(farm: Path) -> None:
    system = private(farm)
    system.master_cf = system.master_cf.replace("1 tlsmgr", "1 tlsmgr -v -o { lmtp_x = 1 }")
    with system:
        assert switch(system, "enable").status == 0
        assert answers(system)
        assert switch(system, "disable").status == 0
        assert answers(system)
        assert not system.log_lines("fatal")


def test_two_instances_share_the_launcher(farm: Path) -> None:
    with private(farm) as one, private(farm) as two:
        assert switch(one, "enable").status == 0
        assert switch(two, "enable").status == 0
        assert answers(one)
        assert answers(two)
        assert running(switch(one, "disable")) == "tlsmgr"
        reload(two)
        assert answers(two)
        shown = switch(two, "status")
        assert (shown.status, running(shown)) == (0, NAME)


def test_a_daemon_that_does_not_start_changes_nothing(farm: Path, checkout: Path) -> None:
    append(checkout, "service.py", "1 / 0")
    with private(farm) as system:
        assert answers(system)
        pid, before = running_pid(system), master_cf(system)
        outcome = switch(system, "enable", checkout=checkout)
        assert outcome.fatal() == "test start failed: ZeroDivisionError: division by zero"
        assert outcome.said == []
        assert master_cf(system) == before
        assert not list(farm.glob(f"{NAME}*"))
        assert running_pid(system) == pid
        assert answers(system)


def test_a_mistake_in_main_cf_is_found_before_anything_is_changed(farm: Path) -> None:
    with private(farm) as system:
        main_cf = system.config / "main.cf"
        good, before = main_cf.read_text(), master_cf(system)
        write_settled(main_cf, f"{good}tls_random_bytes = many\n")
        reason = "bad numerical configuration: tls_random_bytes = many"
        assert switch(system, "enable").fatal() == f"test start failed: {reason}"
        assert master_cf(system) == before
        write_settled(main_cf, good)
        assert answers(system)


def test_a_mistake_in_tlsmgr_cf_is_shown_and_stops_nothing(farm: Path) -> None:
    with private(farm) as system:
        name = "smtp_tls_session_cache_entry_limit"
        write_settled(system.config / "tlsmgr.cf", f"{name} = many\nsmtp_entry_limit = 5\n")
        outcome = switch(system, "enable")
        assert outcome.status == 0, outcome.text
        path = f"{system.config}/tlsmgr.cf"
        assert f'{path}, line 1: {name}: bad number "many"; using the default 0' in outcome.text
        assert f'{path}, line 2: unknown parameter "smtp_entry_limit"' in outcome.text
        assert answers(system)


def test_a_daemon_that_fails_under_master_is_taken_back_at_once(farm: Path, checkout: Path) -> None:
    wrap_python(checkout, ONLY_BY_HAND)
    with private(farm) as system:
        assert answers(system)
        before = master_cf(system)
        outcome = switch(system, "enable", checkout=checkout)
        assert (
            outcome.fatal() == f"{NAME} does not start under master(8): it died without a message"
        )
        assert running(outcome) == "tlsmgr"
        assert answers(system)
        assert master_cf(system) == before
        assert not system.log_lines("throttling")


def test_disable_is_taken_back_when_postfix_s_own_does_not_serve(farm: Path) -> None:
    with private(farm) as system:
        assert switch(system, "enable").status == 0
        before = master_cf(system)
        (farm / "tlsmgr").unlink()
        (farm / "tlsmgr").write_text("#!/bin/sh\nexit 0\n")  # status 1 is throttled for a minute
        (farm / "tlsmgr").chmod(0o755)
        process = command(system, "disable")
        system.wait_log("reload --", 2)
        process.send_signal(signal.SIGTERM)  # no need to wait until it gives up
        outcome = finish(process)
        assert outcome.fatal() == "interrupted by signal 15"
        assert running(outcome) == NAME
        assert master_cf(system) == before
        assert answers(system)


def test_a_checkout_that_broke_later_does_not_stop_disable(farm: Path, checkout: Path) -> None:
    with private(farm) as system:
        before = fields(system)
        assert switch(system, "enable", checkout=checkout).status == 0
        wrap_python(checkout, "exit 1\n")
        reload_to_postfixs_own(system)
        shown = switch(system, "status", checkout=checkout)
        assert (shown.status, running(shown)) == (2, "tlsmgr"), shown.text
        assert "Postfix's own in place of ours: it died without a message" in shown.said[0]
        assert "test start failed: exit status 1" in shown.said[0]
        back = switch(system, "disable", checkout=checkout)
        assert (back.status, running(back)) == (0, "tlsmgr"), back.text
        assert fields(system) == before
        assert answers(system)


def test_status_and_enable_after_a_repair(farm: Path, checkout: Path) -> None:
    with private(farm) as system:
        assert switch(system, "enable", checkout=checkout).status == 0
        module = checkout / "tlsmgr/service.py"
        good = module.read_text()
        append(checkout, "service.py", "1 / 0")
        reload_to_postfixs_own(system)
        shown = switch(system, "status", checkout=checkout)
        assert shown.status == 2
        assert "in place of ours: ZeroDivisionError: division by zero (test" in shown.said[0]

        module.write_text(good)
        shown = switch(system, "status", checkout=checkout)
        assert shown.status == 2
        assert "a test start succeeds now" in shown.said[0]
        mended = switch(system, "enable", checkout=checkout)
        assert (mended.status, running(mended)) == (0, NAME), mended.text
        assert switch(system, "status", checkout=checkout).status == 0


def test_enable_after_an_update_starts_the_new_version(farm: Path, checkout: Path) -> None:
    with private(farm) as system:
        assert switch(system, "enable", checkout=checkout).status == 0
        before = running_pid(system)
        append(checkout, "service.py", "# newer")
        updated = switch(system, "enable", checkout=checkout)
        assert updated.said[-1].startswith("reloaded Postfix"), updated.text
        assert "warning" not in updated.text  # of a cache that the running daemon has in use
        assert running_pid(system) not in (before, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_everything_back(
    stopped: PostfixInstance, farm: Path, checkout: Path, number: signal.Signals
) -> None:
    started = checkout / "started"
    stall = f'case "$*" in *bootstrap*) : >"{started}"; exec sleep 60;; esac\n'
    wrap_python(checkout, f'{stall}exec "$real" "$@"\n')
    before = master_cf(stopped)
    process = command(stopped, "enable", checkout=checkout)
    wait_until(started.exists, 60)
    process.send_signal(number)
    assert finish(process).fatal() == f"interrupted by signal {number}"
    assert master_cf(stopped) == before
    assert not list(farm.glob(f"{NAME}*"))


@pytest.mark.parametrize("step", ["test start", "installed", "changed the tlsmgr command"])
def test_a_kill_between_two_steps_leaves_postfix_working(
    farm: Path, checkout: Path, step: str
) -> None:
    with private(farm) as system:
        process = command(system, "enable", checkout=checkout)
        assert process.stdout is not None
        assert any(step in line for line in process.stdout)
        process.kill()
        finish(process)
        assert fields(system)[-1] in ("tlsmgr", NAME)
        reload(system)
        assert answers(system)
        assert switch(system, "enable", checkout=checkout).status == 0
        assert running_now(system) == NAME


@pytest.mark.parametrize("name", ["enable", "disable"])
def test_a_second_command_waits_for_the_first(
    stopped: PostfixInstance, farm: Path, name: str
) -> None:
    before = master_cf(stopped)
    lock = os.open(farm, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    process = command(stopped, name)

    def waits() -> bool:
        assert process.poll() is None, "it did not wait"
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        return any(line[1] == "->" and line[5] == str(process.pid) for line in locks)

    wait_until(waits, 60)
    assert master_cf(stopped) == before
    os.close(lock)
    assert finish(process).status == 0


def test_without_its_checkout_postfix_runs_its_own_and_disable_works(
    farm: Path, checkout: Path
) -> None:
    with private(farm) as system:
        before = fields(system)
        assert switch(system, "enable", checkout=checkout).status == 0
        shutil.rmtree(checkout)
        reload_to_postfixs_own(system)
        shown = switch(system, "status")
        assert (shown.status, running(shown)) == (2, "tlsmgr"), shown.text
        assert "cannot execute" in shown.said[0]
        back = switch(system, "disable")
        assert back.status == 0, back.text
        assert fields(system) == before
        assert answers(system)


def test_status_of_a_system_that_does_not_run(stopped: PostfixInstance, farm: Path) -> None:
    shown = switch(stopped, "status")
    assert (shown.status, shown.said[0]) == (2, f"{stopped.config}: not enabled")
    assert switch(stopped, "enable").status == 0
    shown = switch(stopped, "status")
    assert (shown.status, running(shown)) == (2, "nothing")
    assert shown.said[0] == f"{stopped.config}: enabled, but Postfix is not running"
    (farm / NAME).unlink()
    shown = switch(stopped, "status")
    assert shown.status == 2
    assert f"{farm}/{NAME} is missing" in shown.said[0]


@pytest.mark.parametrize("chroot", [False, True])
def test_only_root_can_read_the_checkout(farm: Path, checkout: Path, chroot: bool) -> None:
    checkout.chmod(0o700)
    with private(farm, chroot=chroot) as system:
        outcome = switch(system, "enable", checkout=checkout)
        assert (outcome.status, running(outcome)) == (0, NAME), outcome.text
        assert not system.log_lines(r"tlsmgr\[\d+\]: (panic|warning)")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "has no service tlsmgr of type unix"),
        ("tlsmgr unix - - y 1000? - tlsmgr\n", "requires a process limit of 1"),
        ("tlsmgr unix - - y 1000? 0 tlsmgr\n", "requires a process limit of 1"),
        ("tlsmgr unix - - n 1000? 1 tlsmgr hello\n", "unexpected command-line argument: hello"),
        ("tlsmgr unix - - n 1000? 1 tlsmgr-local\n", "service tlsmgr is tlsmgr-local, not tlsmgr"),
    ],
)
def test_a_line_that_cannot_work_is_refused(
    stopped: PostfixInstance, farm: Path, line: str, complaint: str
) -> None:
    first = stopped.master_cf.splitlines(keepends=True)[0]
    (stopped.config / "master.cf").write_text(first + line)
    before = master_cf(stopped)
    assert complaint in switch(stopped, "enable").fatal()
    assert master_cf(stopped) == before
    assert not list(farm.glob(f"{NAME}*"))


def test_a_file_of_somebody_else_is_left_alone(stopped: PostfixInstance, farm: Path) -> None:
    (farm / NAME).write_text("#!/bin/sh\n")
    assert (
        switch(stopped, "enable").fatal() == f"{farm}/{NAME} exists, and is not ours; move it away"
    )
    assert (farm / NAME).read_text() == "#!/bin/sh\n"


def test_the_script_works_through_a_symbolic_link(stopped: PostfixInstance, scratch: Path) -> None:
    link = scratch / "bin" / "tlsmgr-postfix"
    link.parent.mkdir()
    link.symlink_to(ROOT / "scripts" / "tlsmgr-postfix")
    (scratch / "scripts").symlink_to(link.parent)
    outcome = switch(stopped, "status", checkout=scratch)
    assert outcome.said[0] == f"{stopped.config}: not enabled"


def test_a_command_of_postfix_that_fails_is_named(scratch: Path) -> None:
    outcome = switch(str(scratch), "enable")
    reason = f"open {scratch}/main.cf: No such file or directory"
    assert outcome.fatal() == f"'postconf -c {scratch} -x' failed, exit status 1: {reason}"
    assert len(outcome.complained) == 1
