"""ShellTask: one command line, run by a shell."""

from __future__ import annotations

import base64
import errno
import logging
import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, NoReturn

from pydantic import Field, field_validator

from stabilize_celery.errors import TransientError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.redaction import masker_of, redactor_of
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import (
    NAME,
    PLACEHOLDER,
    OptionError,
    PlainText,
    ProcessOptions,
    as_text,
    execution_timeout,
    printed,
    read_options,
    stage_label,
    visible_data,
)
from stabilize_celery.tasks.processes import ProcessResult, run_group
from stabilize_celery.tasks.result import TaskResult

logger = logging.getLogger(__name__)

#: Characters of stderr in the error: its beginning, where most programs say what is wrong.
_ERROR_HEAD = 200
#: Outputs of the built-in tasks: a stage after others may get them.
_USUAL_OUTPUTS = frozenset(
    {"stdout", "stderr", "exit_code", "truncated", "result", "body", "body_json", "status_code", "url"}
)


class ShellOptions(ProcessOptions):
    """Options of a ``shell`` stage."""

    private = ProcessOptions.private | {"command", "stdin"}

    command: PlainText = Field(min_length=1)
    #: ``True`` is /bin/sh; else the absolute path of a shell that understands ``-c`` and POSIX quoting.
    shell: Literal[True] | str = True
    #: What the command can read.
    stdin: str | None = None
    expected_codes: list[int] = Field(default_factory=lambda: [0])
    #: stdout is not text: it is also given as base64 in ``stdout_b64``, and not stripped.
    binary: bool = False
    #: A failure is retried by the engine instead of ending the stage.
    restart_on_failure: bool = False

    def failure(self, error: str, data: Mapping[str, Any] | None = None) -> TaskResult:
        if self.restart_on_failure and data is not None:
            raise TransientError(error, context_update={"_last_outputs": data})
        return super().failure(error, data)

    @field_validator("shell")
    @classmethod
    def _absolute_executable(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not (os.path.isabs(value) and os.access(value, os.X_OK)):
            raise ValueError("Shell not found: give the absolute path of an executable")
        return value


class ShellTask(Task):
    """Runs a command line; ``{key}`` in it stands for what the stage sees, which the shell gets as a variable.

    Outputs: ``stdout`` and ``stderr`` (stripped), ``exit_code``, ``truncated``, and ``stdout_b64`` if
        ``binary``.
    """

    def execute(self, stage: StageExecution) -> TaskResult:
        """Run the command of ``stage``.

        Raises:
            TransientError: it failed, and ``restart_on_failure`` is set.
        """
        try:
            options = read_options(ShellOptions, stage)
            bound = _bound(options, stage)
        except OptionError as error:
            return TaskResult.terminal(str(error))
        logger.debug("stage %s runs: %s", stage_label(stage), masker_of(stage).text(bound.command))
        try:
            process = run_group(
                ["/bin/sh" if options.shell is True else options.shell, "-c", bound.command],
                timeout=options.timeout,
                max_output_size=options.max_output_size,
                cwd=options.cwd,
                env={**options.environment(), **bound.variables},
                stdin=None if options.stdin is None else options.stdin.encode("utf-8", "surrogatepass"),
            )
        except OSError as error:
            return options.failure(_not_started(error, bound.command))
        return _result(options, process, stage)

    def get_execution_timeout(self, stage: StageExecution) -> timedelta | None:
        """The option ``timeout`` and some room to end the processes."""
        return execution_timeout(stage)


def check_command(stage: StageExecution) -> None:
    """Refuse a command with a placeholder that cannot be passed safely, before anything runs.

    Raises:
        ValueError: names the placeholder and another way.
    """
    command = stage.own_context.get("command")
    if isinstance(command, str):
        follows = bool(stage.requisite_stage_ref_ids) or stage.is_synthetic
        known = visible_data(ShellOptions, stage).keys() | (_USUAL_OUTPUTS if follows else set())
        bind(command, known, more=follows)


def _bound(options: ShellOptions, stage: StageExecution) -> Bound:
    values = {key: value for key, value in visible_data(ShellOptions, stage).items() if value is not None}
    where = f"Stage '{stage_label(stage)}': option 'command': "
    try:
        bound = bind(options.command, values)
    except ValueError as error:
        raise OptionError(f"{where}{error}") from None
    for name in bound.unfilled:
        logger.warning("stage %s: nothing fills {%s} in its command", stage_label(stage), name)
    for variable, key in bound.variables.items():
        # Half of a surrogate pair is no character, but JSON knows it.
        raw = as_text(values[key]).encode("utf-8", "surrogatepass")
        bound.variables[variable] = raw.decode("utf-8", "surrogateescape")
        if "\0" in bound.variables[variable]:
            raise OptionError(f"{where}{{{key}}}: a command cannot contain a NUL character; use 'stdin'")
    return bound


def _not_started(error: OSError, command: str) -> str:
    if error.errno == errno.E2BIG:
        return (
            f"Command or environment too long to start (command: {len(command)} characters);"
            " pass large values through 'stdin'"
        )
    return f"Command could not be started: {error.strerror}"


def _result(options: ShellOptions, process: ProcessResult, stage: StageExecution) -> TaskResult:
    succeeded = process.ended == "exit" and process.exit_code in options.expected_codes
    hide = masker_of(stage) if succeeded else redactor_of(stage)
    out, err = printed(process, hide)
    data: dict[str, Any] = {
        "stdout": out if options.binary else out.strip(),
        "stderr": err.strip(),
        "exit_code": process.exit_code,
        "truncated": process.truncated,
    }
    if options.binary:
        raw = hide.data(process.stdout, truncated=process.stdout_truncated)
        data["stdout_b64"] = base64.b64encode(raw).decode("ascii")
    wrong = None
    if not succeeded:
        wrong = f"Command exited with code {process.exit_code} (expected: {options.expected_codes})"
        wrong += f": {data['stderr'][:_ERROR_HEAD]}" if data["stderr"] else ""
    return options.result(process, data, "Command", wrong)


# ---------------------------------------------------------------------- placeholders
#
# A value never becomes part of the command: {key} becomes a variable, in double quotes unless it stands in some.  So
# all there is to know of a place is whether a variable is expanded there, once, and by this shell.

_EITHER = r"(?P<skip>\{\{[^{}]*\}\}|\\.|<<<)|(?<!\$)\{(?P<name>[^{}]+)\}|(?P<back>`(?:\\.|[^`\\])*`?)"
_QUOTED = re.compile(rf'{_EITHER}|(?P<open>\$\(\(|\$\(|\$\{{)|(?P<end>")|(?P<other>.)', re.DOTALL)
_PLAIN = re.compile(
    rf"""{_EITHER}|(?P<single>\$'(?:\\.|[^'\\])*'?|'[^']*'?)|(?P<comment>(?<![^\s;&|()<>])\#[^\n]*)
    |(?P<here><<-?[ \t]*(?:["'\\]?(?P<word>[\w.-]+)["']?)?)|(?P<open>\$?\(\(|[$<>]?\(|\$\{{|")
    |(?P<stop>;|\n|\|\||&&|(?<![<>|])&(?!>))|(?P<end>[)}}])|(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_SHELL = r"(?:\S*/)?(?:ba|da|a|z|k|mk|c|tc|fi)?sh"
_CODE = r"(?:\S*/)?(?:python[\d.]*|perl|ruby|node|php)"
#: In a simple command (\0 for a placeholder): something that reads the words after it as a program or as arithmetic.
_EVALUATES = re.compile(
    rf"""(?<![^\s(])(?:
      (?:\S*/)?(?:eval|trap|ssh|let|alias|unset|watch|parallel|su|runuser)\s.*\0
    | (?:{_SHELL}|\$\{{?SHELL\}}?|busybox)\s(?=.*\0)(?:.*\s)?-\w*c
    | (?:{_SHELL}|source|\.)\s(?:.*\s)?<[<(].*\0
    | {_CODE}\s(?:.*\s)?-\w*[cer]\s*\S*\0
    | (?:declare|typeset|local|export|readonly|read)\s(?:[^=]*|-\w*i.*)\0
    | (?:printf|test|\[|\[\[)\s+-v\s.*\0
    | \[\[\s(?=.*\0).*\s-(?:eq|ne|lt|le|gt|ge)\s
    )|\w\[[^\]\s]*\0""",
    re.DOTALL | re.VERBOSE,
)
#: At the end of a pipe: something that reads its input as a program.
_RUNS_INPUT = re.compile(
    rf"(?<!\S)(?:{_SHELL}(?:\s+-\S+)*|{_CODE}(?:\s+-)?|ssh(?:\s+-\S+)*\s+\S+|(?:source|\.)\s+/dev/stdin|at\s.*"
    rf"|xargs\s.*{_SHELL}\s.*-\w*c\s.*)\s*(?:\d*[<>].*)?$",
    re.DOTALL,
)
_WAY_OUT = (
    "; write it outside of that, without quotes or in double quotes, or pass it through 'env' and write \"$NAME\","
    " or through 'stdin'"
)


@dataclass
class Bound:
    """A command whose placeholders are variables, with the key that each variable holds."""

    command: str
    variables: dict[str, str]
    #: What looks like a placeholder, and nothing fills it.
    unfilled: list[str]


def bind(command: str, known: Container[str], more: bool = False) -> Bound:
    """Make each ``{key}`` of ``command`` a variable.

    Args:
        command: what the user wrote; ``${NAME}``, ``{{..}}`` and braces around anything that is no key stay.
        known: the keys there are.
        more: there may be others when it runs: what can hardly be meant otherwise is refused in unsafe places too.

    Raises:
        ValueError: a value in that place would be read as a program, or not be put in; says what to do.
    """
    return _Binder(command, known, more).bind()


@dataclass
class _Open:
    """Quotes or brackets that have been opened, or the command itself."""

    kind: str
    close: str
    #: The pipeline that is being read, \0 for each placeholder; blanks within quotes are no blanks.
    text: str = ""
    names: list[str] = field(default_factory=list)
    has_case: bool = False


class _Binder:
    def __init__(self, command: str, known: Container[str], more: bool) -> None:
        self._command = command
        self._known = known
        self._more = more
        self._open = [_Open("$(", "")]
        self._variables: dict[str, str] = {}
        self._unfilled: list[str] = []
        #: Words that end the here-documents that begin on the next line.
        self._here: list[str | None] = []
        self._lost = ""

    def bind(self) -> Bound:
        at, out = 0, []
        while at < len(self._command):
            quoted = any(each.kind == '"' for each in self._open) if self._open[-1].kind == "${" else False
            rule = _QUOTED if self._open[-1].kind == '"' or quoted else _PLAIN
            token = rule.match(self._command, at)
            assert token is not None
            at = token.end()
            if token[0] == "\n" and self._here and token.lastgroup == "stop":
                at = self._end_of_here(at)
            out.append(self._take(str(token.lastgroup), token) or self._command[token.start() : at])
        while self._open:
            self._close()
        variables = {variable: key for key, variable in self._variables.items()}
        return Bound("".join(out), variables, self._unfilled)

    def _take(self, kind: str, token: re.Match[str]) -> str | None:
        """Note a token; returns what stands for it, unless that is the token."""
        now, text = self._open[-1], token[0]
        if kind == "name":
            return self._placeholder(token["name"], text)
        if text == now.close:
            self._close()
        elif kind in ("back", "single"):
            self._refuse_in(
                text, "in backquotes (write $(...) instead)" if kind == "back" else "in single quotes"
            )
            now.text += re.sub(r"\s", "_", text.strip("$'`"))
        elif kind == "here" and now.kind != "((":
            self._here.append(token["word"])
        elif kind == "open":
            self._push(text)
        elif kind == "stop":
            self._end_pipeline(now)
        elif kind != "comment":
            now.text += "" if text == "\\\n" else text.removeprefix("\\")
        return None

    def _push(self, text: str) -> None:
        if text == '"' or text == "${":
            self._open.append(_Open(text, '"' if text == '"' else "}"))
            return
        self._open[-1].text += text[0] if text[0] in "<>" else ""
        # "((" is two brackets.
        arithmetic = text.endswith("((") or (text == "(" and self._open[-1].kind == "((")
        for _ in range(2 if text.endswith("((") else 1):
            self._open.append(_Open("((" if arithmetic else "$(", ")"))

    def _close(self) -> None:
        closed = self._open.pop()
        if closed.kind == "$(":
            self._end_pipeline(closed)
        if not self._open:
            return
        if closed.has_case and any(each.kind == '"' for each in self._open):
            # The ")" of a pattern looks like the end of $(...).
            self._lost = "after a 'case' inside $(...)"
        self._open[-1].names += closed.names
        inside = "\0" if closed.names else "_"
        self._open[-1].text += re.sub(r"\s", "_", closed.text) if closed.kind == '"' else f"({inside}"

    def _placeholder(self, name: str, text: str) -> str | None:
        now, known = self._open[-1], name in self._known
        # Git's "@{u}", and single quotes within double ones: for another program, which may know braces too.
        meant = NAME.fullmatch(name) is not None and not now.text.endswith("@")
        meant = meant and not (now.kind == '"' and now.text.count("'") % 2 == 1)
        if not known and not (meant and self._more):
            self._unfilled += [name] if meant else []
            now.text += text
            return None
        where = self._lost
        for each in reversed(self._open):
            if each.kind == "$(":
                break
            where = where or {"((": "in arithmetic", "${": "inside ${...}"}.get(each.kind, "")
        if where and (known or where == "in arithmetic"):
            _refuse(name, where)
        now.text += "\0"
        now.names.append(name)
        if not known:
            return None
        variable = self._variables.setdefault(name, f"_stabilize_{len(self._variables) + 1}")
        return f"${{{variable}}}" if now.kind == '"' else f'"${{{variable}}}"'

    def _end_pipeline(self, now: _Open) -> None:
        fed = False
        for part in now.text.split("|"):
            if ("\0" in part and _EVALUATES.search(part)) or (fed and _RUNS_INPUT.search(part.strip())):
                _refuse(
                    now.names[-1], f"for {part.split(chr(0))[0].strip()!r:.60}, which reads it as a program"
                )
            fed = fed or "\0" in part
        now.has_case = now.has_case or re.search(r"(?<!\S)case\s", now.text) is not None
        now.text = ""

    def _end_of_here(self, at: int) -> int:
        """Where the here-documents that begin at ``at`` end."""
        for word in self._here:
            found = (
                re.compile(rf"^\t*{re.escape(word)}$", re.MULTILINE).search(self._command, at)
                if word
                else None
            )
            end = len(self._command) if found is None else found.end()
            self._refuse_in(self._command[at:end], "in a here-document")
            at = end
        self._here = []
        return at

    def _refuse_in(self, text: str, where: str) -> None:
        for found in PLACEHOLDER.finditer(text):
            if found["name"] and found["name"] in self._known:
                _refuse(found["name"], where)


def _refuse(name: str, where: str) -> NoReturn:
    raise ValueError(f"{{{name}}} cannot be quoted safely {where}{_WAY_OUT}")
