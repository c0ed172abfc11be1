"""No file ever holds a key of tickets or sessions: not at any moment of a reload, nor after a stop.

The search is first shown to find what it looks for. The sealing keys come from a note that the
daemon under test writes when it makes them; that they are those in use is seen in its memory.
"""

from __future__ import annotations

import base64
import contextlib
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.daemon_process import shared_memory_names
from support.launcher import launcher
from support.live_processes import workers_of
from support.postfix_instance import PostfixInstance, need_postfix
from support.postfix_sandbox import wait_until
from support.raw_client import Connection, data_of, expect_seed, lookup, tktkey, update
from support.secret_search import Contents, in_memory
from support.serving_postfix import PATIENCE, ours, parent_of

from tlsmgr.tickets import NAME_BYTES, RANDOM_BYTES

SHM = Path("/dev/shm")
KEY = 32  # bytes of each key in a ticket key, and of each key of a session cache
AFTER = 20  # looks when the next one serves
STEP = 0.003  # seconds for which the daemons run between two looks
NOTING = """
import os, sys
from tlsmgr import bootstrap
from tlsmgr.sessions import shared

class Noting(shared.SharedCache):
    def __init__(self, memory, keys, encrypted):
        with open({path!r}, "ab") as note:
            note.write(keys)
        super().__init__(memory, keys, encrypted)

from tlsmgr.processes import setup
setup.SharedCache = Noting
sys.exit(bootstrap.main())
"""


class System(PostfixInstance):
    """A Postfix system whose daemons note the sealing keys that they make."""

    def __init__(self, tlsmgr: str, note: Path) -> None:
        limits = {f"{kind}_tls_session_cache_size_limit": "1M" for kind in ("smtp", "smtpd")}
        super().__init__(tlsmgr=tlsmgr, chroot=True)
        text = "".join(f"{name} = {value}\n" for name, value in limits.items())
        (self.config / "tlsmgr.cf").write_text(text)
        self._note = note

    def sealing_keys(self) -> list[bytes]:
        """Those of all daemons so far, the latest ones last."""
        data = self._note.read_bytes()
        return [data[at : at + KEY] for at in range(0, len(data), KEY)]

    def ticket_keys(self) -> list[bytes]:
        """The two keys in the ticket key that is in use."""
        with Connection(str(self.socket)) as connection:
            key = data_of(connection.ask(tktkey()), b"keybuf")[NAME_BYTES:RANDOM_BYTES]
        return [key[:KEY], key[KEY:]]


@pytest.fixture
def postfix(tmp_path: Path) -> Iterator[System]:
    """A system that serves."""
    need_postfix("btree")
    note = tmp_path / "note"
    with launcher(NOTING.format(path=str(note))) as path, System(path, note) as system:
        yield system
        assert system.stop() == []
        assert system.log_lines("throttling|panic:|fatal:|error:|Traceback") == []


@contextlib.contextmanager
def traffic(path: str) -> Iterator[None]:
    """Have a client store and look up sessions, and ask for ticket keys, meanwhile."""
    end = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        number = 0
        while not end.wait(0.002):
            try:
                with Connection(path) as connection:
                    for kind in (b"smtpd", b"smtp"):
                        number += 1
                        name = b"%d" % number
                        connection.ask(update(kind, name, b"session " * 100))
                        connection.ask(lookup(kind, name))
                    connection.ask(tktkey())
            except EOFError:  # a client of an old worker
                continue
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    assert failures == []


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """None of these processes runs meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def look_while(postfix: System, found: Contents, before: int) -> int:
    """Look at the files at each step of a reload, while no daemon runs, until another serves.

    Return at how many steps there was neither a parent before nor a worker of the next one.
    """
    end = time.monotonic() + PATIENCE
    left, between = AFTER, 0
    while left:
        with stopped(ours(postfix)):
            found.look(postfix.directory, postfix.data, SHM)
            parents = [p.pid for p in psutil.Process(postfix.master_pid()).children()]
            serves = any(pid != before and workers_of(pid) for pid in parents)
            between += before not in parents and not serves
        time.sleep(STEP)
        left -= serves
        assert time.monotonic() < end
    return between


def test_no_file_holds_a_key_during_a_reload(postfix: System) -> None:
    """Two of them, with clients. Only the processes have the keys."""
    found = Contents()
    tickets, between = postfix.ticket_keys(), 0
    with traffic(str(postfix.socket)):
        for _ in range(2):
            before = parent_of(postfix).pid
            assert in_memory(workers_of(before)[0].pid, tickets) == set(tickets)
            os.kill(postfix.master_pid(), signal.SIGHUP)
            between += look_while(postfix, found, before)
            postfix.wait_log(f"took over from process {before}: ")
            assert postfix.ticket_keys() == tickets
    sealing = postfix.sealing_keys()
    assert len(sealing) == 3 * 4, "of three daemons with two caches"
    in_use = {sealing[1], *sealing[0::4]}  # of one cache; its digest key is that of the first
    assert in_memory(workers_of(parent_of(postfix).pid)[0].pid, in_use) == in_use
    assert between > 2
    print(f"{found.looks} looks, {between} between the daemons")
    assert {"smtp_scache.sessions", "prng_exch", "main.cf"} <= {p.name for p in found.paths()}
    assert found.with_secret([*tickets, *sealing]) == set()


def test_nothing_is_left_after_a_stop(postfix: System) -> None:
    """Right after a reload: no process, no name, no file with a key; the next keys are others."""
    names = shared_memory_names()
    tickets = postfix.ticket_keys()
    with Connection(str(postfix.socket)) as stays:
        expect_seed(stays, 4)
        before = parent_of(postfix).pid
        os.kill(postfix.master_pid(), signal.SIGHUP)
        postfix.wait_log(f"took over from process {before}: ")
        postfix.postfix("stop")
        assert postfix.stop() == []
    assert postfix.processes() == []
    wait_until(lambda: shared_memory_names() <= names, PATIENCE)  # another test's go at once
    sealing = postfix.sealing_keys()
    found = Contents()
    found.look(postfix.directory, postfix.data, SHM)
    assert found.with_secret([*tickets, *sealing]) == set()
    postfix.start()
    new = postfix.ticket_keys()
    assert not set(new) & set(tickets)
    parent = parent_of(postfix)
    for process in [parent, *workers_of(parent.pid)]:
        assert in_memory(process.pid, [*new, *tickets, *sealing]) == set(new)


# The search finds what there is.


@pytest.mark.parametrize("form", ["raw", "half", "hexadecimal", "base64"])
def test_a_key_in_a_file_is_found(tmp_path: Path, form: str) -> None:
    secret = os.urandom(KEY)
    forms = {
        "raw": secret,
        "half": secret[16:],
        "hexadecimal": secret.hex().encode(),
        "base64": base64.b64encode(b"ab" + secret + b"c"),
    }
    (tmp_path / "other").write_bytes(os.urandom(1000))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 5000 + forms[form] + b"y")
    found = Contents()
    found.look(tmp_path)
    assert found.with_secret([os.urandom(KEY), secret]) == {tmp_path / "deep" / "file"}
    (tmp_path / "deep" / "file").unlink()
    found.look(tmp_path)
    assert found.with_secret([secret]) == {tmp_path / "deep" / "file"}, "it was there"


def test_a_key_that_is_written_through_a_mapping_is_found(postfix: System) -> None:
    """Into space of the session file that was allocated ahead, while workers have it open."""
    postfix.ticket_keys()
    path = postfix.data / "smtp_scache.sessions"
    secret = os.urandom(KEY)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        assert len(area) > 8 << 20
        place = len(area) // 2 + 100
        area[place : place + KEY] = secret
        found = Contents()
        found.look(postfix.data)
        assert found.with_secret([secret]) == {path}
        area[place : place + KEY] = bytes(KEY)
