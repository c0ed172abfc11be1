"""Log lines: form, printable text, the route, the limit, and a standard error without a reader."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsmgr import log


class Lines:
    """A destination that keeps lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, str, bytes]] = []

    def write(self, severity: log.Severity, tag: str, text: bytes) -> None:
        self.lines.append((severity.prefix, severity.level, tag, text))

    def descriptors(self) -> tuple[int, ...]:
        return (7,)


@pytest.fixture
def lines() -> Iterator[Lines]:
    destination = Lines()
    before = log.use(destination, "postfix/tlsmgr")
    yield destination
    log.restore(before)


def test_each_severity_has_postfix_words_and_syslog_level(lines: Lines) -> None:
    for write in (log.info, log.warning, log.error, log.fatal, log.panic):
        write("text")
    assert [line[:2] for line in lines.lines] == [
        ("", 6),
        ("warning: ", 4),
        ("error: ", 3),
        ("fatal: ", 2),
        ("panic: ", 2),
    ]
    assert {line[2:] for line in lines.lines} == {("postfix/tlsmgr", b"text")}


@pytest.mark.parametrize(
    ("text", "ascii_text", "utf8_text"),
    [
        ("plain ~text", b"plain ~text", b"plain ~text"),
        ("one\ntwo\ttab\0nul\x7fdel", b"one?two?tab?nul?del", b"one?two?tab?nul?del"),
        ("é€😀", b"?" * 9, "é€😀".encode()),
        ("a\udcfcb\udcff", b"a?b?", b"a?b?"),
        ("csi\x9b", b"csi??", b"csi??"),
        ("", b"", b""),
    ],
)
def test_text_is_made_printable(text: str, ascii_text: bytes, utf8_text: bytes) -> None:
    assert log.printable(text, keep_utf8=False) == ascii_text
    assert log.printable(text, keep_utf8=True) == utf8_text


@settings(deadline=None)
@given(st.text(st.characters()), st.booleans())
def test_any_text_comes_out_printable_and_short(text: str, keep_utf8: bool) -> None:
    line = log.printable(text * 30, keep_utf8)
    assert line.decode().isprintable()
    assert len(line) <= log.TEXT_LIMIT
    assert keep_utf8 or line.isascii()


def test_text_is_cut_at_2000_bytes_and_not_within_a_character() -> None:
    assert log.printable("x" * 2001, keep_utf8=False) == b"x" * 2000
    assert log.printable("x" + "é" * 1000, keep_utf8=True) == b"x" + "é".encode() * 999


def test_use_returns_what_was_in_force(lines: Lines) -> None:
    other = Lines()
    before = log.use(other, "hpf/\ntlsmgr", keep_utf8=True)
    log.info("é")
    log.restore(before)
    log.info("é")
    assert other.lines == [("", 6, "hpf/?tlsmgr", "é".encode())]
    assert lines.lines == [("", 6, "postfix/tlsmgr", b"??")]


def test_descriptors_are_those_of_the_destination_and_standard_error(lines: Lines) -> None:
    assert log.descriptors() == (7,)
    before = log.use(lines, also_stderr=True)
    assert log.descriptors() == (2, 7)
    log.restore(before)


def test_standard_error_shows_the_program_and_its_own_pid(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = log.use(log.Stderr(), "postfix/tlsmgr")
    log.warning("text")
    child = os.fork()
    if not child:
        try:
            log.info("from the child")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    log.restore(before)
    shown = capfd.readouterr().err
    assert shown == f"tlsmgr[{os.getpid()}]: warning: text\ntlsmgr[{child}]: from the child\n"


def test_lines_go_to_standard_error_as_well_when_asked(
    lines: Lines, capfd: pytest.CaptureFixture[str]
) -> None:
    before = log.use(lines, "hpf/tlsmgr", also_stderr=True)
    log.error("text")
    log.restore(before)
    assert capfd.readouterr().err == f"tlsmgr[{os.getpid()}]: error: text\n"
    assert lines.lines == [("error: ", 3, "hpf/tlsmgr", b"text")]


def test_a_standard_error_that_nobody_reads_blocks_nobody() -> None:
    program = "from tlsmgr import log\nfor _ in range(2000): log.info('x' * 1000)\nprint('done')"
    reader, writer = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=writer,
        timeout=60,
        check=True,
    )
    os.close(writer)
    os.close(reader)
    assert done.stdout == b"done\n"


def test_a_closed_standard_error_is_no_error() -> None:
    program = "import os\nos.close(2)\nfrom tlsmgr import log\nlog.info('x')\nprint('done')"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=True
    )
    assert done.stdout == b"done\n"


def fail(depth: int) -> None:
    if depth:
        fail(depth - 1)
    raise ValueError("a message\nof\0" + "x" * 200)


def test_a_traceback_has_type_message_and_innermost_frames(lines: Lines) -> None:
    with pytest.raises(ValueError, match="a message") as caught:
        fail(30)
    log.traceback(caught.value)
    texts = [text.decode() for _, _, _, text in lines.lines]
    assert {prefix for prefix, *_ in lines.lines} == {"panic: "}
    assert texts[0] == "ValueError: a message?of?" + "x" * 87
    assert len(texts) == 1 + log.FRAME_LIMIT
    assert all(re.fullmatch(r"  .*test_log\.py:[0-9]+ in fail", text) for text in texts[1:])


def test_fatal_carries_its_text() -> None:
    with pytest.raises(log.Fatal) as caught:
        raise log.Fatal("open main.cf: No such file or directory")
    assert caught.value.text == str(caught.value) == "open main.cf: No such file or directory"


def texts_of(lines: Lines) -> list[str]:
    return [prefix + text.decode() for prefix, _, _, text in lines.lines]


def test_a_limit_lets_one_line_through_per_key_and_interval(lines: Lines) -> None:
    limit = log.Limit(60)
    for now in (0.0, 1.0, 59.9, 60.0, 61.0, 120.5):
        limit.warning("source", f"at {now}", now)
    limit.warning("other", "other", 61.0)
    assert texts_of(lines) == [
        "warning: at 0.0",
        "warning: at 60.0 (2 more since the last such line)",
        "warning: at 120.5 (1 more since the last such line)",
        "warning: other",
    ]


def test_a_limit_may_let_a_burst_through(lines: Lines) -> None:
    limit = log.Limit(60, burst=3)
    for number in range(10):
        limit.warning("mistake", f"number {number}", float(number))
    for number in range(10, 15):
        limit.warning("mistake", f"number {number}", 60.0)
    assert texts_of(lines) == [
        "warning: number 0",
        "warning: number 1",
        "warning: number 2",
        "warning: number 10 (7 more since the last such line)",
        "warning: number 11",
        "warning: number 12",
    ]


def test_a_limit_says_once_that_a_problem_is_over(lines: Lines) -> None:
    limit = log.Limit(60)
    limit.over("works again")
    limit.warning("one", "one fails", 0.0)
    limit.warning("two", "two fails", 0.0)
    limit.over("all works again")
    limit.over("all works again")
    limit.warning("one", "one fails again", 2.0)
    assert texts_of(lines) == [
        "warning: one fails",
        "warning: two fails",
        "all works again",
        "warning: one fails again",
    ]


def test_a_limit_with_a_clock_that_was_set_back_goes_on(lines: Lines) -> None:
    limit = log.Limit(60)
    for now in (1000.0, 10.0, 20.0):
        limit.warning("key", f"at {now:g}", now)
    assert texts_of(lines) == ["warning: at 1000", "warning: at 10"]


def test_a_limit_does_not_grow_for_ever(lines: Lines) -> None:
    limit = log.Limit(60)
    keys = [f"key {number}" for number in range(5 * log.Limit.KEYS)]
    for key in (*keys, keys[-1]):
        limit.warning(key, key, 0.0)
    assert texts_of(lines) == [f"warning: {key}" for key in keys], "the last one once"
    assert len(limit._repeats) <= log.Limit.KEYS
