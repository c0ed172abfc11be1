"""$-expansion: every form, every message, and no other exception than Fatal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsmgr.config.expand import expand
from tlsmgr.log import Fatal

NAMES = {
    "a": "300",
    "empty": "",
    "x_1": "X",
    "to_a": "$a",
    "dollar": "$$a",
    "level": "3.6",
    "yes": "${a?{yes}:{no}}",
    "loop": "$loop",
    "loop1": "$loop2",
    "loop2": "${loop1}",
    "loop3": "${{$loop3} == {x} ? {1} : {2}}",
}

GOOD = [
    ("", ""),
    ("plain text", "plain text"),
    ("$a", "300"),
    ("$a.b", "300.b"),
    ("$x_1-", "X-"),
    ("${a}", "300"),
    ("$(a)", "300"),
    ("${ a }", "300"),
    ("${\ta\r}", "300"),
    ("$$", "$"),
    ("$$$a$$a", "$300$a"),
    ("$dollar", "$a"),
    ("$to_a$to_a", "300300"),
    ("$nope", ""),
    ("${nope}", ""),
    ("${ }", ""),
    ("${?x}", ""),
    ("${:x}", "x"),
    ("${a?text}", "text"),
    ("${a?}", ""),
    ("${empty?text}", ""),
    ("${nope?text}", ""),
    ("${a:text}", ""),
    ("${empty:text}", "text"),
    ("${nope:text}", "text"),
    ("${a?300:400}", "300:400"),
    ("${a??x:{b}y}", "?x:{b}y"),
    ("${nope??x:{b}y}", ""),
    ("${a? text }", " text "),
    ("${a?$a$a}", "300300"),
    ("${a?{x}:{y}}", "x"),
    ("${nope?{x}:{y}}", "y"),
    ("${a?{ x }:{ y }}", " x "),
    ("${ a ? {x} : {y} }", "x"),
    ("${ nope ? {x} : {y} }", "y"),
    ("${nope ? {x} : y }", " y "),
    ("${a?{x}}", "x"),
    ("${a?{x} }", "x"),
    ("${nope:{x}}", "x"),
    ("${nope : {x} }", "x"),
    ("${nope?{x}:text}", "text"),
    ("${nope?{x}:}", ""),
    ("${a?{$x_1}:{$(}}", "X"),
    ("${nope?{$(}:{$x_1}}", "X"),
    ("${a?{${x_1?{deep}}}}", "deep"),
    ("${a?{{b}}}", "{b}"),
    ("$(a?(b))", "(b)"),
    ("$(a?{b})", "b"),
    ("$yes", "yes"),
    ("${{a} == {a}}", "true"),
    ("${{a} == {b}}", ""),
    ("${{a}=={a}?{1}:{2}}", "1"),
    ("${{a} == {b} ? {1} : {2}}", "2"),
    ("${{a}=={a}?1:2}", "1:2"),
    ("${{a}=={b}:2}", "2"),
    ("${ {a} != {b} ?{1}}", "1"),
    ("${{9} < {10}}", "true"),
    ("${{09} == {9}}", "true"),
    ("${{" + "0" * 30 + "9} == {9}}", "true"),
    ("${{x9} < {x10}}", ""),
    ("${{} == {}}", "true"),
    ("${{} < {1}}", "true"),
    ("${{3.6} < {3.11}}", ""),
    ("${{3.6} <level {3.11}}", "true"),
    ("${{3.6}<level{3.11}}", "true"),
    ("${{$level} >=level {3.6} ? {new} : {old}}", "new"),
    ("${{3} ==level {3.0.0}}", "true"),
    ("${{3.6.1} >level {3.6}}", "true"),
    ("${{3.6.1023} <=level {3.7}}", "true"),
    ("${{8796093022207} >level {1}}", "true"),
    ("${{3} !=level {4}}", "true"),
    ("${{ a} < {a}}", "true"),
    ("${{5} <= {5}}", "true"),
    ("${{5} >= {6}}", ""),
    ("${{5} > {4}}", "true"),
    ("${{$a} == {300}}", "true"),
    ("${{${a?{x}}} == {x}}", "true"),
    ("${{\udcfc} > {\u00fc}}", "true"),
    ("${{9223372036854775807} > {0}}", "true"),
    ("é $a", "é 300"),
]

BAD = [
    ("$", 'empty macro name: "$"'),
    ("a $ b", 'empty macro name: "a $ b"'),
    ("a ${}", 'empty macro name: "a ${}"'),
    ("$()", 'empty macro name: "$()"'),
    ("${a", 'truncated macro reference: "${a"'),
    ("x $(a", 'truncated macro reference: "x $(a"'),
    ("${a{}", 'truncated macro reference: "${a{}"'),
    ("${a-b}", 'attribute name syntax error at: "...a>>>-b"'),
    ("${ a b?c}", 'attribute name syntax error at: "... a>>> b?c"'),
    (
        "${a.2345678901234567890123}",
        'attribute name syntax error at: "...a>>>.2345678901234567890"',
    ),
    ("${a{x}}", 'attribute name syntax error at: "...a>>>{x}"'),
    ("${a?{300} x}", '":" expected at: "...300}>>>x"'),
    ("${nope?{300}{400}}", '":" expected at: "...300}>>>{400}"'),
    ("${a?{1}:{2}x}", 'unexpected input at: "...2}>>>x"'),
    ("${nope:{2}:{3}}", 'unexpected input at: "...2}>>>:{3}"'),
    (
        "${{a} <> {b}}",
        '"==" or "!="" or "<"" or "<="" or ">="" or ">" expected at: "...a}>>><> {b}"',
    ),
    (
        "${{a} = {b}}",
        '"==" or "!="" or "<"" or "<="" or ">="" or ">" expected at: "...a}>>>= {b}"',
    ),
    ("${{a}}", '"==" or "!="" or "<"" or "<="" or ">="" or ">" expected at: "...a}>>>"'),
    ("${{l} ==}", '"{expression}" expected at: "...{l} ==>>>"'),
    ("${{l} == r}", '"{expression}" expected at: "...{l} ==>>> r"'),
    ("${{l} ==foo {r}}", 'bad operator suffix at: "...==>>>foo"'),
    ("${{l} == {r} x}", '"?" or ":" expected at: "...}>>>x"'),
    ("${{x} <level {1}}", 'malformed compatibility level syntax: "x"'),
    ("${{8796093022208} >level {1}}", 'malformed compatibility level syntax: "8796093022208"'),
    ("${{1} <level {1.1024}}", 'malformed compatibility level syntax: "1.1024"'),
    ("${{1} <level {1.}}", 'malformed compatibility level syntax: "1."'),
    ("${{1.2.3.4} <level {1}}", 'malformed compatibility level syntax: "1.2.3.4"'),
    ("$(a?{x)", 'unbalanced {} in attribute expression: "{x"'),
    ("$({x)", 'unbalanced {} in attribute expression: "{x"'),
    ("$loop", 'unreasonable macro call nesting: "loop"'),
    ("$loop1", 'unreasonable macro call nesting: "loop2"'),
]


@pytest.mark.parametrize(("text", "expanded"), GOOD)
def test_every_form(text: str, expanded: str) -> None:
    assert expand(text, NAMES, pytest.fail) == expanded


@pytest.mark.parametrize(("text", "warning"), BAD)
def test_a_syntax_error_is_one_warning_and_fatal(text: str, warning: str) -> None:
    warnings: list[str] = []
    with pytest.raises(Fatal) as caught:
        expand(text, NAMES, warnings.append)
    assert warnings == [warning]
    assert caught.value.text == "dictionary mail_dict: macro processing error"


def test_a_value_that_compares_with_itself_ends_too() -> None:
    warnings: list[str] = []
    with pytest.raises(Fatal):
        expand("$loop3", NAMES, warnings.append)
    assert warnings == ['unreasonable macro call nesting: "{$loop3} == {x} ? {1} : {2}"']


@pytest.mark.parametrize("digits", ["9223372036854775808", "9" * 5000])
def test_a_number_that_fits_no_long_is_fatal(digits: str) -> None:
    with pytest.raises(Fatal) as caught:
        expand(f"${{{{{digits}}} < {{1}}}}", {}, pytest.fail)
    assert caught.value.text == f"mac_exp_eval: bad conversion: {digits}"


def chain(length: int) -> dict[str, str]:
    """Names n0 to n`length`, each a reference to the next, the last one to a text."""
    return {f"n{i}": f"$n{i + 1}" for i in range(length)} | {f"n{length}": "end"}


def test_nesting_has_101_levels() -> None:
    assert expand("$n0", chain(99), pytest.fail) == "end"
    warnings: list[str] = []
    with pytest.raises(Fatal):
        expand("$n0", chain(100), warnings.append)
    assert warnings == ['unreasonable macro call nesting: "end"']


def test_braces_may_be_nested_without_references() -> None:
    inner = "{" * 2000 + "x" + "}" * 2000
    assert expand("${a?" + inner + "}", NAMES, pytest.fail) == inner[1:-1]


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="$")))
def test_text_without_a_dollar_is_left_alone(text: str) -> None:
    assert expand(text, NAMES, pytest.fail) == text


@settings(deadline=None)
@given(st.text())
def test_doubled_dollars_bring_any_text_through(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}, pytest.fail) == text


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["$", "{", "}", "(", ")", "?", ":", "a", "loop", "==", "<level", " ", "1"])
    )
)
def test_no_text_raises_anything_but_fatal_after_one_warning(tokens: list[str]) -> None:
    warnings: list[str] = []
    try:
        expand("".join(tokens), NAMES, warnings.append)
        faults = 0
    except Fatal as error:
        faults = 0 if "bad conversion" in error.text else 1
    assert len(warnings) == faults
