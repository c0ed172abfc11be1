"""tlsmgr-postfix(8) tried on private Postfix systems, through its script, as an admin uses it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.postfix_instance import postfix_missing, wait_until
from support.switching_systems import (
    GOOD_PYTHON,
    ROOT,
    Outcome,
    answers,
    command,
    fields,
    make_checkout,
    make_farm,
    private,
    running,
    running_pid,
    set_python,
    switch,
    write_files,
)

from tlsmgr.install.launcher import NAME

missing = postfix_missing()
needs_postfix = pytest.mark.skipif(missing is not None, reason=str(missing))


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


@needs_postfix
def test_mail_flows_with_sessions_reused_after_enable_and_after_disable(farm: Path) -> None:
    with private(farm, mail=True, chroot=True) as system:
        system.deliver()
        before = fields(system)

        first = switch(system, "enable")
        assert (first.status, running(first)) == (0, NAME), first.text
        assert [line.split()[0] for line in first.said] == [
            "installed",
            "tried",
            f"{system.config}/master.cf:",
            "reloaded",
        ]
        assert fields(system) == [*before[:-1], NAME]
        system.deliver(3)
        assert len(system.log_lines(r"/smtp\[.*Reusing old session")) >= 2
        assert not system.log_lines("throttling|panic")

        shown = switch(system, "status")
        assert (shown.status, running(shown)) == (0, NAME), shown.text
        assert str(ROOT) in shown.said[1]

        again = switch(system, "enable")
        assert (again.status, len(again.said), running(again)) == (0, 1, NAME), again.text

        back = switch(system, "disable")
        assert (back.status, running(back)) == (0, "tlsmgr"), back.text
        assert fields(system) == before
        assert not (farm / NAME).exists()
        system.deliver(2)

        again = switch(system, "disable")
        assert (again.status, len(again.said), running(again)) == (0, 1, "tlsmgr"), again.text
        shown = switch(system, "status")
        assert (shown.status, running(shown)) == (1, "tlsmgr"), shown.text


@needs_postfix
def test_the_line_keeps_what_the_admin_made_of_it(farm: Path) -> None:
    (farm / "tlsmgr-local").symlink_to(farm / "tlsmgr")
    system = private(farm)
    line = "tlsmgr unix y - y 500 1 tlsmgr-local -v\n"
    line += "  -o smtp_tls_loglevel=2 -o { tls_random_bytes = 16 }\n"
    system.master_cf = system.master_cf.splitlines(keepends=True)[0] + line
    write_files(system)
    master_cf = system.config / "master.cf"
    master_cf.chmod(0o640)
    before = fields(system)
    assert before[:-1] == ["y", "-", "y", "500", "1"]

    outcome = switch(system, "enable")
    assert outcome.status == 0, outcome.text
    assert "does not run" in outcome.said[-1]
    assert fields(system) == [*before[:-1], before[-1].replace("tlsmgr-local", NAME)]
    assert master_cf.stat().st_mode & 0o777 == 0o640

    system.master_cf = master_cf.read_text()
    with system:
        assert answers(system)
        assert running(switch(system, "status")) == NAME
        system.stop()
        outcome = switch(system, "disable")
        assert outcome.status == 0, outcome.text
        assert fields(system) == before
        assert not (farm / NAME).exists()


@needs_postfix
def test_two_instances_share_the_launcher(farm: Path) -> None:
    with private(farm) as one, private(farm) as two:
        assert switch(one, "enable").status == 0
        assert switch(two, "enable").status == 0
        assert answers(one)
        assert answers(two)

        outcome = switch(one, "disable")
        assert "other instances" in outcome.said[-1]
        assert answers(one)
        assert running(switch(two, "status")) == NAME
        assert answers(two)

        outcome = switch(two, "disable")
        assert outcome.said[-1] == f"removed {farm}/{NAME}"
        assert answers(two)


@needs_postfix
def test_a_daemon_that_does_not_start_changes_nothing(farm: Path, checkout: Path) -> None:
    set_python(checkout, '#!/bin/sh\ncase "$*" in *tlsmgr.daemon*) exit 7;; esac\n' + GOOD_PYTHON)
    with private(farm) as system:
        assert answers(system)
        pid, before = running_pid(system), (system.config / "master.cf").read_bytes()
        outcome = switch(system, "enable", checkout=checkout)
        assert "exit status 7" in outcome.fatal()
        assert (system.config / "master.cf").read_bytes() == before
        assert not (farm / NAME).exists()
        assert running_pid(system) == pid
        assert answers(system)


@needs_postfix
def test_a_mistake_in_main_cf_is_found_before_anything_is_changed(farm: Path) -> None:
    with private(farm) as system:
        before = fields(system)
        main_cf = system.config / "main.cf"
        good = main_cf.read_text()
        main_cf.write_text(f"{good}tls_random_bytes = many\n")
        outcome = switch(system, "enable")
        assert outcome.fatal() == "bad numerical configuration: tls_random_bytes = many"
        assert outcome.said == []
        assert fields(system) == before
        main_cf.write_text(good)
        assert answers(system)


@needs_postfix
def test_a_mistake_in_tlsmgr_cf_is_shown_and_stops_nothing(farm: Path) -> None:
    with private(farm) as system:
        name = "smtp_tls_session_cache_entry_limit"
        (system.config / "tlsmgr.cf").write_text(f"{name} = many\nsmtp_entry_limit = 5\n")
        outcome = switch(system, "enable")
        assert outcome.status == 0, outcome.text
        path = f"{system.config}/tlsmgr.cf"
        assert f'{path}, line 1: {name}: bad number "many"; using the default 0' in outcome.text
        assert f'{path}, line 2: unknown parameter "smtp_entry_limit"' in outcome.text
        assert answers(system)


@needs_postfix
def test_a_daemon_that_fails_under_master_is_taken_back_at_once(farm: Path, checkout: Path) -> None:
    set_python(checkout, '#!/bin/sh\n[ -z "$GENERATION" ] || exit 1\n' + GOOD_PYTHON)
    with private(farm) as system:
        assert answers(system)
        before = (system.config / "master.cf").read_bytes()
        outcome = switch(system, "enable", checkout=checkout)
        assert "does not answer under master(8)" in outcome.fatal()
        assert system.log_lines("throttling")  # which would last for a minute
        assert answers(system)
        assert running(switch(system, "status")) == "tlsmgr"
        assert (system.config / "master.cf").read_bytes() == before
        assert not (farm / NAME).exists()


@needs_postfix
def test_a_python_that_broke_later_does_not_stop_disable(farm: Path, checkout: Path) -> None:
    with private(farm) as system:
        before = fields(system)
        assert switch(system, "enable", checkout=checkout).status == 0
        set_python(checkout, "#!/bin/sh\nexit 1\n")
        system.postfix("reload")
        wait_until(lambda: not answers(system, 0.5) and system.log_lines("throttling"), 30)
        back = switch(system, "disable", checkout=checkout)
        assert (back.status, running(back)) == (0, "tlsmgr"), back.text
        assert fields(system) == before
        assert answers(system)


@needs_postfix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_everything_back(
    farm: Path, checkout: Path, number: signal.Signals
) -> None:
    started = checkout / "started"
    stall = f'#!/bin/sh\ncase "$*" in *tlsmgr.daemon*) : >"{started}"; exec sleep 60;; esac\n'
    set_python(checkout, stall + GOOD_PYTHON)
    system = private(farm)
    write_files(system)
    before = (system.config / "master.cf").read_bytes()
    process = command(system, "enable", checkout=checkout)
    wait_until(started.exists, 60)
    assert (farm / NAME).exists()
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    outcome = Outcome(subprocess.CompletedProcess([], process.returncode, output, errors))
    assert outcome.fatal() == f"interrupted by signal {number}"
    assert (system.config / "master.cf").read_bytes() == before
    assert not (farm / NAME).exists()
    system.__exit__(None)


@needs_postfix
def test_without_its_checkout_postfix_runs_its_own_and_disable_works(
    farm: Path, checkout: Path
) -> None:
    with private(farm) as system:
        before = fields(system)
        assert switch(system, "enable", checkout=checkout).status == 0
        (checkout / ".venv/bin/python").unlink()
        system.postfix("reload")
        warned = "tlsmgr-prefork.*cannot execute"
        wait_until(lambda: answers(system) and system.log_lines(warned) and running_pid(system), 30)
        shown = switch(system, "status", checkout=checkout)
        assert (shown.status, running(shown)) == (0, "tlsmgr"), shown.text
        back = switch(system, "disable", checkout=checkout)
        assert back.status == 0, back.text
        assert fields(system) == before
        assert answers(system)


@needs_postfix
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "has no service tlsmgr of type unix"),
        ("tlsmgr unix - - y 1000? - tlsmgr\n", "requires a process limit of 1"),
        ("tlsmgr unix - - y 1000? 0 tlsmgr\n", "requires a process limit of 1"),
        ("tlsmgr unix - - n 1000? 1 tlsmgr hello\n", "unexpected command-line argument: hello"),
    ],
)
def test_a_line_that_cannot_work_is_refused(farm: Path, line: str, complaint: str) -> None:
    system = private(farm)
    system.master_cf = system.master_cf.splitlines(keepends=True)[0] + line
    write_files(system)
    before = (system.config / "master.cf").read_bytes()
    assert complaint in switch(system, "enable").fatal()
    assert (system.config / "master.cf").read_bytes() == before
    assert not (farm / NAME).exists()
    system.__exit__(None)


@needs_postfix
def test_a_file_of_somebody_else_is_left_alone(farm: Path) -> None:
    system = private(farm)
    write_files(system)
    (farm / NAME).write_text("#!/bin/sh\n")
    assert switch(system, "enable").fatal() == f"{farm}/{NAME} exists, and is not ours"
    assert (farm / NAME).read_text() == "#!/bin/sh\n"
    system.__exit__(None)


@needs_postfix
def test_a_directory_without_main_cf_is_one_line(scratch: Path) -> None:
    outcome = switch(str(scratch), "status")
    assert outcome.fatal() == f"postconf: open {scratch}/main.cf: No such file or directory"
    assert len(outcome.complained) == 1
