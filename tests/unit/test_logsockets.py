"""Syslog and postlog, with real sockets: line formats, readers that sleep or come back."""

import os
import re
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tlsmgr import log
from tlsmgr.logsockets import (
    FACILITIES,
    LAST_WAIT_LIMIT,
    PERIOD,
    WAIT_LIMIT,
    LineSocket,
    Postlog,
    Syslog,
    WaitBudget,
)


def listen(path: Path, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    """A socket that takes lines; closed by the test or the garbage collector."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    listener.settimeout(10)
    if kind == socket.SOCK_STREAM:
        listener.listen()
    return listener


def texts_waiting(listener: socket.socket) -> list[str]:
    """All lines that are there now, without what is before the text."""
    listener.setblocking(False)
    texts: list[str] = []
    while True:
        try:
            line = listener.recv(65536).decode()
        except BlockingIOError:
            return texts
        texts.append(line.partition("]: ")[2])


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked process that must end well; its pid."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    return child


@pytest.fixture
def local_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clock at 2 November 2025, 03:04:05, in a zone that is not UTC."""
    monkeypatch.setenv("TZ", "XYZ-2")
    time.tzset()
    moment = time.localtime(1762045445)
    monkeypatch.setattr(time, "localtime", lambda *_seconds: moment)
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("local_time")
def test_a_syslog_line_is_that_of_glibc(tmp_path: Path) -> None:
    with listen(tmp_path / "log") as reader:
        destination = Syslog("mail", str(tmp_path / "log"))
        destination.write(log.WARNING, "postfix/tlsmgr", b"text")
        destination.close()
        expected = f"<20>Nov  2 03:04:05 postfix/tlsmgr[{os.getpid()}]: warning: text"
        assert reader.recv(65536).decode() == expected


@pytest.mark.usefixtures("local_time")
def test_a_postlog_line_has_the_host_and_no_priority(tmp_path: Path) -> None:
    with listen(tmp_path / "log") as reader:
        destination = Postlog((str(tmp_path / "log"),), "spec.example.com")
        destination.write(log.FATAL, "hpf/tlsmgr", b"text")
        destination.close()
        expected = f"Nov 02 03:04:05 spec hpf/tlsmgr[{os.getpid()}]: fatal: text"
        assert reader.recv(65536).decode() == expected


@pytest.mark.parametrize(
    ("facility", "severity", "priority"),
    [
        ("mail", log.INFO, 22),
        ("mail", log.ERROR, 19),
        ("mail", log.FATAL, 18),
        ("mail", log.PANIC, 18),
        ("kern", log.INFO, 6),
        ("authpriv", log.INFO, 86),
        ("local7", log.WARNING, 188),
    ],
)
def test_priorities(tmp_path: Path, facility: str, severity: log.Severity, priority: int) -> None:
    with listen(tmp_path / "log") as reader:
        destination = Syslog(facility, str(tmp_path / "log"))
        destination.write(severity, "t/t", b"")
        destination.close()
        assert reader.recv(65536).startswith(f"<{priority}>".encode())


def test_facilities_are_those_of_the_system() -> None:
    syslog = pytest.importorskip("syslog")
    for name, number in FACILITIES.items():
        if name != "ftp":  # the module does not know it
            assert number * 8 == getattr(syslog, f"LOG_{name.upper()}")


def test_a_stream_log_socket_gets_lines_that_end_with_a_null_byte(tmp_path: Path) -> None:
    with listen(tmp_path / "log", socket.SOCK_STREAM) as listener:
        destination = Syslog("mail", str(tmp_path / "log"))
        destination.write(log.INFO, "t/t", b"one")
        destination.write(log.INFO, "t/t", b"two")
        destination.close()
        connection, _ = listener.accept()
        content = b"".join(iter(lambda: connection.recv(65536), b""))
        connection.close()
    assert re.fullmatch(rb"<22>[^\0]*: one\0<22>[^\0]*: two\0", content)


Make = Callable[[Path], LineSocket]

MAKERS: list[Make] = [
    lambda path: Syslog("mail", str(path)),
    lambda path: Postlog((str(path),), "host"),
]


class LastWaitsOnly(WaitBudget):
    """A budget that is used up, but for the last lines."""

    def left(self, limit: float) -> float:
        return 0.0 if limit <= WAIT_LIMIT else limit


SLOW = "the log daemon does not read fast enough"


@pytest.mark.parametrize("make", MAKERS)
def test_a_socket_nobody_reads_blocks_nobody_and_lost_lines_are_counted(
    tmp_path: Path, make: Make
) -> None:
    path = tmp_path / "log"
    with listen(path) as reader:
        destination = make(path)
        for number in range(5000):
            destination.write(log.INFO, "t/t", b"%d" % number)
        kept = texts_waiting(reader)
        assert 0 < len(kept) < 5000
        assert kept == [str(number) for number in range(len(kept))]
        destination.write(log.INFO, "t/t", b"last")
        loss = f"warning: {5000 - len(kept)} log lines were dropped because {SLOW}"
        assert texts_waiting(reader) == [loss, "last"]
        destination.write(log.INFO, "t/t", b"more")
        assert texts_waiting(reader) == ["more"]
        destination.close()


def test_the_next_line_follows_a_report_when_there_is_room_for_one_line_only(
    tmp_path: Path,
) -> None:
    """Reports do not take the place of lines for ever: each second line is a line."""
    with listen(tmp_path / "log") as reader:
        destination = Syslog("mail", str(tmp_path / "log"))
        destination._budget = LastWaitsOnly(time.monotonic)
        for number in range(100):
            destination.write(log.INFO, "t/t", b"%d" % number)
        texts = []
        for number in range(100, 120):
            texts.append(reader.recv(65536).decode().partition("]: ")[2])
            destination.write(log.INFO, "t/t", b"%d" % number)
        texts += texts_waiting(reader)
        destination.close()
    kept = [text for text in texts if text.isdigit()]
    reports = [text for text in texts if not text.isdigit()]
    first = len(texts) - 20
    one = f"warning: 1 log line was dropped because {SLOW}"
    assert reports == [f"warning: {100 - first} log lines were dropped because {SLOW}", *[one] * 9]
    assert kept == [*map(str, range(first)), *map(str, range(101, 120, 2))]


# A reader that is slow.


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_is_used_up_and_comes_back_with_the_next_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    waits: list[float] = []

    class Poll:
        def register(self, _descriptor: int, _events: int) -> None: ...

        def poll(self, milliseconds: float) -> list[int]:
            """Nothing becomes writable; a single wait takes at most 30 ms."""
            waits.append(milliseconds / 1000)
            clock.now += min(milliseconds / 1000, 0.03)
            return []

    monkeypatch.setattr(select, "poll", Poll)
    budget = WaitBudget(clock)
    for _ in range(5):
        assert not budget.wait(0, WAIT_LIMIT)
    assert waits == pytest.approx([0.05, 0.02])
    assert not budget.wait(0, LAST_WAIT_LIMIT)
    assert waits.pop() == pytest.approx(LAST_WAIT_LIMIT - WAIT_LIMIT)
    clock.now = 100.0 + PERIOD - 0.001
    assert budget.left(WAIT_LIMIT) == 0.0
    clock.now = 100.0 + PERIOD
    assert budget.left(WAIT_LIMIT) == WAIT_LIMIT
    budget.wait(0, WAIT_LIMIT)
    clock.now = 50.0
    assert budget.left(WAIT_LIMIT) == WAIT_LIMIT, "a clock that goes back stops nothing"


class SlowReader(threading.Thread):
    """A log daemon that takes a line each 40 ms, and all that is left at the end."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self._listener = listener
        self._end = threading.Event()
        self.texts: list[str] = []

    def run(self) -> None:
        while not self._end.wait(0.04):
            self.texts.append(self._listener.recv(65536).decode().partition("]: ")[2])

    def stop(self) -> list[str]:
        """All lines, those included that still wait."""
        self._end.set()
        self.join()
        return [*self.texts, *texts_waiting(self._listener)]


def test_a_slow_reader_delays_log_calls_by_a_small_part_of_the_time(tmp_path: Path) -> None:
    """Without a budget each line waits, and nearly all of the time goes by in log calls."""
    with listen(tmp_path / "log") as listener:
        reader = SlowReader(listener)
        destination = Syslog("mail", str(tmp_path / "log"))
        reader.start()
        written, in_calls = 0, 0.0
        start = time.monotonic()
        while time.monotonic() < start + 3 * PERIOD:
            began = time.monotonic()
            destination.write(log.INFO, "t/t", b"line %d" % written)
            in_calls += time.monotonic() - began
            written += 1
            time.sleep(0.0005)
        took = time.monotonic() - start
        texts = reader.stop()
        for _ in range(2):
            destination.write(log.INFO, "t/t", b"end")
        texts += texts_waiting(listener)
        destination.close()
    assert in_calls < took / 3
    lost = sum(int(match[1]) for text in texts if (match := re.match(r"warning: (\d+) log", text)))
    kept = [int(text[5:]) for text in texts if text.startswith("line ")]
    assert len(kept) > 20
    assert kept == sorted(kept)
    assert texts[-1] == "end"
    assert len(kept) + lost == written


def test_the_last_lines_of_a_process_wait_longer(tmp_path: Path) -> None:
    """A reader that makes room after twice the usual limit gets them."""
    with listen(tmp_path / "log") as listener:
        filler = Syslog("mail", str(tmp_path / "log"))
        while not filler._dropped:
            filler.write(log.INFO, "t/t", b"text")
        destination = Syslog("mail", str(tmp_path / "log"))
        timer = threading.Timer(2 * WAIT_LIMIT, lambda: listener.recv(65536))
        timer.start()
        destination.write(log.FATAL, "t/t", b"the reason")
        timer.join()
        assert texts_waiting(listener)[-1] == "fatal: the reason"
        filler.close()
        destination.close()


def test_a_stream_nobody_reads_blocks_nobody(tmp_path: Path) -> None:
    with listen(tmp_path / "log", socket.SOCK_STREAM) as listener:
        destination = Syslog("mail", str(tmp_path / "log"))
        for _ in range(5000):
            destination.write(log.INFO, "t/t", b"x" * 1000)
        connection, _ = listener.accept()
        connection.setblocking(False)
        received = b""
        deadline = time.monotonic() + 20
        while not received.endswith(b": last\0"):
            assert time.monotonic() < deadline
            try:
                received += connection.recv(65536)
            except BlockingIOError:
                destination.write(log.INFO, "t/t", b"last")
        connection.close()
        destination.close()
    lines = received.split(b"\0")
    assert all(line.startswith(b"<") for line in lines[:-1])
    assert sum(b" dropped because the log daemon does not read" in line for line in lines) == 1


@pytest.mark.parametrize("make", MAKERS)
def test_a_reader_that_comes_late_or_comes_back_is_found(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "log"
    destination = make(path)
    assert destination.descriptors() == ()
    destination.write(log.INFO, "t/t", b"lost")
    with listen(path) as reader:
        destination.write(log.INFO, "t/t", b"one")
        loss = f"warning: 1 log line was dropped because no log daemon was listening on {path}"
        assert texts_waiting(reader) == [loss, "one"]
        assert len(destination.descriptors()) == 1
    destination.write(log.INFO, "t/t", b"lost")
    with listen(path) as reader:
        destination.write(log.INFO, "t/t", b"two")
        assert texts_waiting(reader) == [loss, "two"]
    destination.close()


def test_a_line_for_a_reader_that_was_replaced_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with listen(path):
        destination = Syslog("mail", str(path))
    with listen(path) as reader:
        destination.write(log.INFO, "t/t", b"one")
        assert texts_waiting(reader) == ["one"]
    destination.close()


def test_the_old_connection_is_kept_while_there_is_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with listen(path) as reader:
        destination = Syslog("mail", str(path))
        path.unlink()
        destination.write(log.INFO, "t/t", b"one")
        assert texts_waiting(reader) == ["one"]
    before = destination.descriptors()
    destination.write(log.INFO, "t/t", b"lost")
    assert destination.descriptors() == before
    destination.close()


def test_a_line_without_a_descriptor_for_another_connection_is_dropped(tmp_path: Path) -> None:
    """As in a worker with very many clients, when the log daemon was started again."""
    with listen(tmp_path / "log"):
        destination = Syslog("mail", str(tmp_path / "log"))

    def without_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        destination.write(log.INFO, "t/t", b"lost")

    in_child(without_descriptors)
    destination.close()


def test_the_second_path_serves_when_the_first_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "public").mkdir()
    monkeypatch.chdir(tmp_path)
    with listen(tmp_path / "public/postlog") as reader:
        destination = Postlog(("/nonexistent/public/postlog", "public/postlog"), "host")
        destination.write(log.INFO, "t/t", b"one")
        assert texts_waiting(reader) == ["one"]
        destination.close()


def test_forked_workers_share_the_connection_and_show_their_own_pid(tmp_path: Path) -> None:
    with listen(tmp_path / "log") as reader:
        before = log.use(Syslog("mail", str(tmp_path / "log")), "postfix/tlsmgr")
        child = in_child(lambda: log.info("from the child"))
        log.info("from the parent")
        log.restore(before)
        lines = [reader.recv(65536).decode().partition(" postfix/")[2] for _ in range(2)]
    assert lines == [f"tlsmgr[{child}]: from the child", f"tlsmgr[{os.getpid()}]: from the parent"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed for a chroot")
def test_it_works_in_a_jail(tmp_path: Path) -> None:
    (tmp_path / "jail").mkdir()
    with listen(tmp_path / "log") as reader:
        before = log.use(Syslog("mail", str(tmp_path / "log")), "postfix/tlsmgr")

        def in_jail() -> None:
            os.chroot(tmp_path / "jail")
            os.chdir("/")
            try:
                raise RuntimeError("a defect")
            except RuntimeError as error:
                log.traceback(error)
            log.info("é\udcfc")

        in_child(in_jail)
        log.restore(before)
        first, second, third = texts_waiting(reader)
    assert first == "panic: RuntimeError: a defect"
    assert second.startswith("panic:   ")
    assert third == "???"
