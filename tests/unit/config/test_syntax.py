"""main.cf's lines: what is an assignment, what is ignored, and what is fatal."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsmgr.config import syntax
from tlsmgr.log import Fatal


def read_text(content: bytes) -> tuple[dict[str, str], list[str]]:
    """The names in a file's content, and the warnings."""
    warnings: list[str] = []
    assignments = syntax.parse(content, "main.cf", warnings.append)
    return syntax.assign(assignments, "main.cf", warnings.append), warnings


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", {}),
        (b"a = 1\n", {"a": "1"}),
        (b"a=1", {"a": "1"}),
        (b"a =\n", {"a": ""}),
        (b"a = b = c\n", {"a": "b = c"}),
        (b"A = 1\na = 2\n", {"A": "1", "a": "2"}),
        (b"a = 1 # no comment\n", {"a": "1 # no comment"}),
        (b"# a = 1\n  # b = 2\n\n \t\nc = 3\n", {"c": "3"}),
        (b"a = 2\n\t00\n", {"a": "2\t00"}),
        (b"a = 1\n  2\n\n# comment\n   # comment\n \n  3\nb = 4\n", {"a": "1  2  3", "b": "4"}),
        (b"a = 1\n\x0c2\n", {"a": "1\x0c2"}),
        (b"a =\n  b\n", {"a": "b"}),
        (b"a\n = b\n", {"a": "b"}),
        (b"a = 1\r\nb = 2\r\n", {"a": "1", "b": "2"}),
        (b"a \t=\x0b 1 \x0c\n", {"a": "1"}),
        (b"a = {\nb = }\n", {"a": "{", "b": "}"}),
        (b'a = "x\\"\n', {"a": '"x\\"'}),
        ("a = fü\n".encode(), {"a": "fü"}),
        (b"a = f\xfc\n", {"a": "f\udcfc"}),
        (b"a-b.c/$ = 1\n", {"a-b.c/$": "1"}),
        (b"a = 1\na = 1\n", {"a": "1"}),
    ],
)
def test_assignments_without_a_warning(content: bytes, names: dict[str, str]) -> None:
    assert read_text(content) == (names, [])


def test_the_last_value_wins_with_a_warning_at_the_line_of_the_new_one() -> None:
    names, warnings = read_text(b"a = 1\n\na = 2\n\t3\nb = 1\na = 4\n")
    assert names == {"a": "4", "b": "1"}
    assert warnings == [
        "main.cf, line 3: overriding earlier entry: a=1",
        "main.cf, line 6: overriding earlier entry: a=2\t3",
    ]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"  x = 1", "  x = 1"),
        (b"\t" + b"x" * 29, "\t" + "x" * 29),
        (b"\t" + b"x" * 30, "\t" + "x" * 29 + "..."),
        (b"  x = 1\n  y = 2", "  x = 1  y = 2"),
    ],
)
def test_a_continuation_of_nothing_is_ignored_with_a_warning(line: bytes, shown: str) -> None:
    names, warnings = read_text(b"# comment\n" + line + b"\nb = 1\n")
    assert names == {"b": "1"}
    assert warnings == [f'main.cf: logical line must not start with whitespace: "{shown}"']


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\nfoo bar\n", "main.cf, line 2: missing '=' after attribute name: \"foo bar\""),
        (b"foo\n", "main.cf, line 1: missing '=' after attribute name: \"foo\""),
        (b"a b = 1\n", "main.cf, line 1: missing '=' after attribute name: \"a b = 1\""),
        (b"= bar\n", 'main.cf, line 1: missing attribute name: "= bar"'),
        (b"\0a = 1\n", 'main.cf, line 1: missing attribute name: ""'),
        (
            b"a = 1\n\nfoo\n# comment\n  bar\nb = 2\n",
            "main.cf, line 3: missing '=' after attribute name: \"foo  bar\"",
        ),
    ],
)
def test_a_line_that_is_no_assignment_is_fatal(content: bytes, text: str) -> None:
    with pytest.raises(Fatal) as caught:
        read_text(content)
    assert caught.value.text == text


@pytest.mark.parametrize(
    ("content", "where"), [(b"a = 1\0 2\n", "1"), (b"b = 0\na = 1\0\n 2\n", "2-3")]
)
def test_text_behind_a_null_byte_is_lost_with_a_warning(content: bytes, where: str) -> None:
    names, warnings = read_text(content)
    assert names["a"] == "1"
    assert warnings == [f"main.cf, line {where}: text after null byte may be ignored"]


def names_are_sane(content: bytes) -> bool:
    """Whether a file's content is refused, or brings names without blanks around them."""
    try:
        names, _warnings = read_text(content)
    except Fatal:
        return True
    return all(name and name == name.strip(" \t\r\n") for name in names)


@settings(deadline=None)
@given(st.binary())
def test_no_bytes_raise_anything_but_fatal(content: bytes) -> None:
    assert names_are_sane(content)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab=# \t\n\r\0${}"), max_size=40))
def test_no_likely_text_raises_anything_but_fatal(content: str) -> None:
    assert names_are_sane(content.encode())


@settings(deadline=None)
@given(st.binary().filter(lambda value: value.strip(syntax.BLANKS) == value))
def test_any_value_on_one_line_comes_back_as_the_same_bytes(value: bytes) -> None:
    if b"\n" in value or b"\0" in value:
        return
    names, warnings = read_text(b"name = " + value + b"\n")
    assert syntax.encode(names["name"]) == value
    assert warnings == []


def test_a_file_at_rest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "main.cf"
    path.write_bytes(b"a = 1\n")
    os.utime(path, (time.time() - 10, time.time() - 10))
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("paused"))
    assert syntax.load(str(path), pytest.fail) == {"a": "1"}


def test_a_file_from_the_future_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "main.cf"
    path.write_bytes(b"a = 1\n")
    os.utime(path, (time.time() + 1000, time.time() + 1000))
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("paused"))
    assert syntax.load(str(path), pytest.fail) == {"a": "1"}


def test_a_file_that_changes_is_read_until_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "main.cf"
    path.write_bytes(b"a = 1\nb =")
    contents = [b"a = 1\nb = 2\nc", b"a = 1\nb = 2\nc = 3\n"]
    pauses = []

    def someone_writes(seconds: float) -> None:
        pauses.append(seconds)
        if contents:
            path.write_bytes(contents.pop(0))

    monkeypatch.setattr(time, "sleep", someone_writes)
    assert syntax.load(str(path), pytest.fail) == {"a": "1", "b": "2", "c": "3"}
    assert pauses == [0.3] * 3


def test_an_empty_file_that_an_editor_is_about_to_fill_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "main.cf"
    path.write_bytes(b"")
    monkeypatch.setattr(time, "sleep", lambda _seconds: path.write_bytes(b"a = 1\n"))
    assert syntax.load(str(path), pytest.fail) == {"a": "1"}


def test_a_file_that_never_rests_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "main.cf"
    path.write_bytes(b"a = 0\n")
    pauses: list[float] = []

    def someone_writes(seconds: float) -> None:
        pauses.append(seconds)
        path.write_bytes(b"a = %d\n" % len(pauses))

    monkeypatch.setattr(time, "sleep", someone_writes)
    assert syntax.load(str(path), pytest.fail)["a"].isdigit()
    assert len(pauses) == syntax.COOLING_READS


def test_a_directory_in_place_of_the_file_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"^open /.*: Is a directory$"):
        syntax.load(str(tmp_path), pytest.fail)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("-v", ["-v"]),
        ("-v  -o a=b", ["-v", "-o", "a=b"]),
        ("-o { a = b c }", ["-o", "a = b c"]),
        ("-o {a=${b?{c d}:{e}}} -v", ["-o", "a=${b?{c d}:{e}}", "-v"]),
    ],
)
def test_arguments_are_split_as_master_does(text: str, words: list[str]) -> None:
    assert syntax.split_arguments(text) == words


def test_values_of_options() -> None:
    words = ["-v", "-o", "a=b", "-oc=d", "x", "-o"]
    assert list(syntax.option_values(words)) == ["a=b", "c=d", ""]
