from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stabilize_celery.tasks.shell_quoting import UnsafePlaceholderError, quote_into
from stabilize_celery.tasks.substitution import as_text, substitute

#: Any text an argument can hold.
arguments = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
nasty = st.text(st.sampled_from("'\"\\$`!(){}<>|;&#*?~ \n\tab0[]=%^"), max_size=20)


def output(command: str, shell: str) -> str:
    done = subprocess.run([shell, "-c", command], capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert not done.stderr
    return done.stdout.decode()


PLACES = {
    "printf '%s|' {x} b": "{0}|b|",
    "printf '%s|' a{x}c": "a{0}c|",
    "printf '%s|' \"a {x} c\"": "a {0} c|",
    "printf '%s|' 'a {x} c'": "a {0} c|",
    "printf '%s|' \"$(printf '%s.' {x})\"": "{0}.|",
    "printf '%s|' \"$(printf '%s.' \"{x}\")\" '{x}'": "{0}.|{0}|",
    "(printf '%s|' {x}); x=\"{x}\"; printf '%s|' \"$x\"": "{0}|{0}|",
    'printf \'%s|\' "${y:-"no"}" {x} # it\'s {x}': "no|{0}|",
    "printf '%s|' a\\'{x}\\\"{x}": "a'{0}\"{0}|",
}


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=25, deadline=None)
@given(value=arguments | nasty)
@example("$(touch /tmp/never)")
@example("'; exit 9 #")
@example('"; exit 9 #')
@example("`exit 9`")
@example("a\n\\")
@example("{x}")
def test_a_value_arrives_unchanged_wherever_it_stands(shell: str, place: str, value: str):
    assert output(quote_into(place, {"x": value}), shell) == PLACES[place].replace("{0}", value)


@given(st.text(max_size=80) | nasty)
def test_a_command_without_placeholders_is_never_changed(command: str):
    assert quote_into(command, {}) == command


@pytest.mark.parametrize(
    "command",
    [
        "awk '{print $1}'",
        "echo ${VAR} ${VAR:-x}",
        "docker inspect -f '{{VAR}}'",
        "echo {nothing}",
        "f() { VAR; }",
    ],
)
def test_other_braces_survive(command: str):
    assert quote_into(command, {"VAR": "no", "print": "no"}) == command


def test_a_value_is_not_substituted_again():
    assert quote_into("echo {a} {b}", {"a": "{b}", "b": "{a}"}) == "echo '{b}' '{a}'"
    assert substitute("{a} {b}", {"a": "{b}", "b": "{a}"}) == "{b} {a}"


@given(st.dictionaries(st.sampled_from("abc"), st.text("abc{}", max_size=8)), st.text("abc{} ", max_size=30))
def test_substitution_is_one_pass(data: dict[str, str], template: str):
    marked = {key: f"<{ord(key)}>" for key in data}
    expected = substitute(template, marked)
    for key, value in data.items():
        expected = expected.replace(marked[key], f"\0{value}\0")
    assert substitute(template, data) == expected.replace("\0", "")


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("cat <<EOF\n{x}\nEOF\n", "here-document"),
        ("echo `echo {x}`", r"\$\(\.\.\.\)"),
        ("echo $((1 + {x}))", "number"),
        ("((y = {x}))", "number"),
        ("echo ${y:-{x}}", "inside"),
        ("echo $'{x}'", "inside"),
        ('echo "$(case a in a) echo 1;; esac)" {x}', "case"),
    ],
)
def test_places_where_nothing_is_safe_are_refused(command: str, why: str):
    with pytest.raises(UnsafePlaceholderError, match=why):
        quote_into(command, {"x": "v; exit"})


def test_numbers_are_safe_in_arithmetic():
    assert output(quote_into("echo $((1 + ({x} * 2)))", {"x": "20"}), "/bin/sh") == "41\n"


def test_a_here_string_is_no_here_document():
    assert output(quote_into("cat <<< {x}\ncat <<< {x}", {"x": "a b"}), "/bin/bash") == "a b\na b\n"


def test_the_line_of_a_here_document_is_still_safe():
    assert quote_into("cat > {x} <<EOF\nhi\nEOF", {"x": "a b"}) == "cat > 'a b' <<EOF\nhi\nEOF"


def test_comments_are_left_alone():
    command = "echo a # don't {x}\necho {x}"
    assert quote_into(command, {"x": "1\n2"}) == "echo a # don't {x}\necho '1\n2'"


def test_a_nul_is_refused():
    with pytest.raises(UnsafePlaceholderError, match="NUL"):
        quote_into("echo {x}", {"x": "a\0b"})


def test_values_as_text():
    assert [as_text(v) for v in ("a", 1, 1.5, True, [1, "é"], {"a": None})] == [
        "a",
        "1",
        "1.5",
        "True",
        '[1, "é"]',
        '{"a": null}',
    ]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{a}", "1"),
        ("x{a}y{none}{b}", "x1y{none}{b}"),
        ("{{a}}", "{{a}}"),
        ("${a}", "${a}"),
        ('{"n":{"m":{a}}}', '{"n":{"m":1}}'),
    ],
)
def test_substitution(template: str, expected: str):
    assert substitute(template, {"a": 1, "none": None}) == expected
