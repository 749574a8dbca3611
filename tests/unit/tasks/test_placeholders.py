"""``{key}`` in commands and texts: a value arrives as data, or the command is refused before anything runs."""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stabilize_celery import StageExecution, Workflow
from stabilize_celery.errors import InvalidWorkflowError
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.tasks.options import as_text, substitute
from stabilize_celery.tasks.shell import ShellTask, bind
from tests.unit.tasks.helpers import stage_of

#: Any text a variable can hold.
arguments = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
nasty = st.text(st.sampled_from("'\"\\$`!(){}<>|;&#*?~ \n\tab0[]=%^-"), max_size=20)


def output(command: str, shell: str, **values: str) -> str:
    bound = bind(command, values)
    variables = {variable: values[key] for variable, key in bound.variables.items()}
    done = subprocess.run(
        [shell, "-c", bound.command],
        capture_output=True,
        check=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    assert not done.stderr
    return done.stdout.decode()


PLACES = {
    "printf '%s|' {x} b": "{0}|b|",
    "printf '%s|' a{x}c": "a{0}c|",
    "printf '%s|' \"a {x} c\"": "a {0} c|",
    "printf '%s|' \"$(printf '%s.' {x})\"": "{0}.|",
    "printf '%s|' \"$(printf '%s.' \"{x}\")\" {x}": "{0}.|{0}|",
    "(printf '%s|' {x}); x=\"{x}\"; printf '%s|' \"$x\"": "{0}|{0}|",
    'printf \'%s|\' "${y:-"no"}" {x} # it\'s {x}': "no|{0}|",
    "printf '%s|' a\\'{x}\\\"{x}": "a'{0}\"{0}|",
    "cat <<EOF\nhi\nEOF\nprintf %s {x}": "hi\n{0}",
    "cat <<A <<'B'\nx\nA\ny\nB\nprintf %s {x}": "y\n{0}",
    "sh -c 'printf a'; printf %s {x}": "a{0}",
    "X={x} sh -c 'printf %s \"$X\"'": "{0}",
    "env X={x} sh -c 'printf %s \"$X\"'": "{0}",
    "case {x} in '') printf %s {x};; *) printf %s {x};; esac": "{0}",
    'f() { printf %s "$1"; }; if true; then f {x} 2>&1; fi | cat': "{0}",
}


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=15, deadline=None)
@given(value=arguments | nasty)
@example("$(touch /tmp/never)")
@example("'; exit 9 #")
@example('"; exit 9 #')
@example("`exit 9`")
@example("a\n\\")
@example("{x}")
@example("-rf *")
@example("a[$(exit 9)]")
@example("")
def test_a_value_arrives_unchanged_wherever_it_stands(shell: str, place: str, value: str):
    expected = PLACES[place].replace("{0}", value)
    # $(...) and so on take line breaks off an end; printf adds a dot where that matters.
    assert output(place, shell, x=value) == expected


@given(st.text(max_size=80) | nasty)
def test_a_command_without_placeholders_is_never_changed(command: str):
    for more in (False, True):
        try:
            bound = bind(command, {}, more)
        except ValueError:
            assert more
            continue
        assert (bound.command, bound.variables) == (command, {})


@pytest.mark.parametrize(
    "command",
    [
        "awk '{print $1}'",
        "awk '{print}' f",
        "jq '{name}' f",
        "sed -n '/a/{p}' f",
        "ssh host \"awk '{print}' f\"",
        "cat <<'EOF'\nf'{name}'\nEOF",
        "echo ${VAR} ${VAR:-x}",
        "docker inspect -f '{{VAR}}'",
        'docker inspect -f "{{VAR}}"',
        "echo {a,b} {1..3} {}",
        "find . -exec rm {} +",
        "f() { VAR; }",
        "echo # {VAR}",
    ],
)
def test_other_braces_survive(command: str):
    bound = bind(command, {"VAR"}, more=True)
    assert (bound.command, bound.variables) == (command, {})
    assert bind(command, {"VAR"}).unfilled == []


QUOTES = {
    "echo '{x}'": "single quotes",
    "awk '/{x}/'": "single quotes",
    "echo $'{x}'": "single quotes",
    "cat <<EOF\n{x}\nEOF\n": "here-document",
    "cat <<'EOF'\n{x}\nEOF\n": "here-document",
    "cat <<-EOF\n\t{x}\n\tEOF\n": "here-document",
    "cat <<A <<B\na\nA\n{x}\nB": "here-document",
    "echo `echo {x}`": r"write \$\(\.\.\.\)",
    'echo "`echo {x}`"': r"write \$\(\.\.\.\)",
    "echo $((1 + {x}))": "arithmetic",
    'echo "$((1 + ({x})))"': "arithmetic",
    "((y = {x}))": "arithmetic",
    "for ((i = {x};;)); do :; done": "arithmetic",
    "echo ${y:-{x}}": "inside",
    'echo "${y:-{x}}"': "inside",
    'echo "$(case a in a) echo 1;; esac)" {x}': "case",
}
PROGRAMS = [
    "sh -c {x}", 'sh -c "echo {x}"', 'bash -ec "echo {x}"', 'bash -o pipefail -c "{x}"', '/bin/bash -c "{x}"',
    "sh -c 'echo $1' -- {x}", 'sh -c -- "{x}"', "sh \\\n -c {x}", 'sh 2>&1 -c "{x}"', '"sh" -c "{x}"', '\\sh -c "{x}"',
    's"h" -c {x}', '$SHELL -c "{x}"', 'sh -c "a""{x}"', 'sh -c "$(echo {x})"', 'sh -c "$(echo {x}; true)"',
    'env bash -c "{x}"', 'sudo -u a bash -c "{x}"', 'timeout 5 bash -c "{x}"', 'nohup sh -c "{x}" &',
    'xargs sh -c "{x}"', 'find . -exec sh -c "echo {x}" \\;', 'docker exec c sh -c "{x}"', 'exec sh -c "{x}"',
    'true && sh -c "{x}"', 'if true; then sh -c "{x}"; fi', '(sh -c "{x}")', '{ sh -c "{x}"; }', '! sh -c "{x}"',
    '$(sh -c "{x}")', 'echo "$(sh -c "{x}")"', "eval {x}", 'eval "echo {x}"', "a=1 eval {x}", "command eval {x}",
    "ssh host {x}", 'ssh host "ls {x}"', "ssh -p {x} host ls", 'trap "rm {x}" EXIT', "trap {x} EXIT",
    'su -c "echo {x}"', 'su - bob -c "{x}"', 'watch "ls {x}"', 'alias l="ls {x}"', 'python -c "print({x})"',
    "python3 -c \"print('{x}')\"", 'perl -e "print {x}"', "echo {x} | sh", "echo {x} | tee f | bash -s",
    "echo {x} | ssh host", 'echo {x} | xargs -I% sh -c "echo %"', "bash <<< {x}", "bash <(echo {x})",
    "source <(echo {x})", ". <(echo {x})", "let y={x}", "declare -i y={x}", "[[ {x} -eq 1 ]]", "a[{x}]=1",
    "printf -v {x} a", "unset {x}",
]  # fmt: skip


@pytest.mark.parametrize("command", [*QUOTES, *PROGRAMS])
def test_places_where_nothing_is_safe_are_refused(command: str):
    why = QUOTES.get(command, "reads it as a program")
    with pytest.raises(ValueError, match=rf"^\{{x\}} cannot be quoted safely .*{why}.*'env'.*'stdin'"):
        bind(command, {"x"})


@pytest.mark.parametrize("command", [*QUOTES, *PROGRAMS])
def test_they_are_refused_when_the_workflow_is_created(command: str):
    stage = StageExecution.single("build", "shell", {"command": command, "x": 1})
    with pytest.raises(InvalidWorkflowError, match=r"^stage build: command: \{x\} cannot be quoted safely"):
        Workflow.create("a", "n", [stage])


@pytest.mark.parametrize("command", ["echo '{stdout}'", 'sh -c "{x}"', "ssh host {x}", "echo $(({x}))"])
def test_what_an_earlier_stage_may_fill_counts_then_too(command: str):
    stages = [
        StageExecution.single("a", "shell", {"command": "true"}),
        StageExecution.single("build", "shell", {"command": command}, requires={"a"}),
    ]
    with pytest.raises(InvalidWorkflowError, match=r"^stage build: command: "):
        Workflow.create("a", "n", stages)


def test_a_value_known_only_when_it_runs_is_refused_then():
    result = ShellTask().execute(stage_of({"command": "echo '{x}'"}, {"x": "y"}))
    assert result.status is WorkflowStatus.TERMINAL
    assert result.context["error"].startswith(
        "Stage 's': option 'command': {x} cannot be quoted safely in single"
    )


def test_the_way_out_works():
    own = {"command": "sh -c 'echo \"$X\"; cat'", "env": {"X": "a  b"}, "stdin": "c"}
    assert ShellTask().execute(stage_of(own)).outputs["stdout"] == "a  b\nc"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", "<>"),
        ("-n", "<-n>"),
        (0, "<0>"),
        (True, "<True>"),
        ([1, "é"], '<[1, "é"]>'),
        ("\ud800", "<\ufffd\ufffd\ufffd>"),
    ],
)
def test_odd_values_arrive_too(value: Any, expected: str):
    result = ShellTask().execute(stage_of({"command": 'printf "<%s>" {x}', "x": value}))
    assert result.outputs["stdout"] == expected


def test_what_nothing_fills_is_warned_of(caplog: pytest.LogCaptureFixture):
    own = {"command": "echo {nope} \"{none}\" '{print}' {a,b} {x}", "x": 1, "none": None}
    with caplog.at_level(logging.WARNING):
        result = ShellTask().execute(stage_of(own, ref="build"))
    assert result.outputs["stdout"] == "{nope} {none} {print} {a,b} 1"
    assert caplog.messages == [
        "stage build: nothing fills {nope} in its command",
        "stage build: nothing fills {none} in its command",
    ]


def test_a_value_is_not_substituted_again():
    assert output("echo {a} {b}", "/bin/sh", a="{b}", b="{a}") == "{b} {a}\n"
    assert substitute("{a} {b}", {"a": "{b}", "b": "{a}"}) == "{b} {a}"


@given(st.dictionaries(st.sampled_from("abc"), st.text("abc{}", max_size=8)), st.text("abc{} ", max_size=30))
def test_substitution_is_one_pass(data: dict[str, str], template: str):
    marked = {key: f"<{ord(key)}>" for key in data}
    expected = substitute(template, marked)
    for key, value in data.items():
        expected = expected.replace(marked[key], f"\0{value}\0")
    assert substitute(template, data) == expected.replace("\0", "")


def test_a_nul_is_refused():
    result = ShellTask().execute(stage_of({"command": "echo {x}", "x": "a\0b"}))
    assert "NUL" in result.context["error"]


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
