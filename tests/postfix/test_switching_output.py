"""tlsmgr-postfix whose output cannot be written: it finishes what it began.

`enable | head -1` must not leave Postfix between two states, and a full disk under a log of what
was done must not either.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.postfix_instance import PostfixInstance, postfix_missing
from support.switching_systems import make_farm, private, write_files

from tlsmgr.install.launcher import NAME

pytestmark = pytest.mark.skipif(postfix_missing() is not None, reason=str(postfix_missing()))

READER_GONE = ""
DISK_FULL = "tlsmgr-postfix: fatal: cannot write the output: No space left on device\n"


@pytest.fixture
def stopped() -> Iterator[PostfixInstance]:
    """A system that is configured and does not run."""
    scratch = Path(tempfile.mkdtemp(prefix="tlsmgr-output-"))
    scratch.chmod(0o755)
    system = private(make_farm(scratch / "sbin"))
    write_files(system)
    yield system
    system.__exit__(None)
    shutil.rmtree(scratch)


@pytest.fixture(params=[READER_GONE, DISK_FULL], ids=["reader gone", "disk full"])
def unwritable(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """A descriptor that cannot be written to, and what the command says of it."""
    if request.param == DISK_FULL:
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    yield descriptor, request.param
    os.close(descriptor)


def test_the_work_is_done_and_the_status_tells(
    stopped: PostfixInstance, unwritable: tuple[int, str]
) -> None:
    output, complaint = unwritable
    for command, serves in (("enable", NAME), ("disable", "tlsmgr")):
        done = subprocess.run(
            [CHECKOUT / "scripts/tlsmgr-postfix", command, "-c", stopped.config],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
        said = [line for line in done.stderr.splitlines(True) if ": warning: no log" not in line]
        assert (done.returncode, "".join(said)) == (1, complaint)
        entry = (stopped.config / "master.cf").read_text().splitlines()[-1]
        assert entry.split()[-1] == serves
