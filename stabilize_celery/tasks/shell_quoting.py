"""``{key}`` in a shell command: a value always arrives as data, whatever it contains and wherever it stands.

``shlex.quote`` alone is right only where nothing is quoted yet: in ``echo "{x}"`` its quotes become part of
the text and a value ``$(rm -rf /)`` is run.  So the command is read the way a shell reads it, and each value
is escaped for the place it stands in.  Where no escaping is safe (a here-document, backquotes, arithmetic) it
is refused with a way out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from stabilize_celery.tasks.substitution import PLACEHOLDER

_WORD_END = frozenset(" \t\n;&|()<>")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_CASE = re.compile(r"\bcase\s")
_WAY_OUT = "; pass it through 'env' and write \"$NAME\", or through 'stdin'"


class UnsafePlaceholderError(ValueError):
    """A ``{key}`` stands where no value can be put safely."""


def quote_into(command: str, values: Mapping[str, str]) -> str:
    """``command`` with ``{key}`` replaced by the values, each escaped for its place; one pass.

    Raises:
        UnsafePlaceholderError: there is no safe way; the message names the key and another way.
    """
    return _Reader(command, values).read()


class _Reader:
    """Reads a command from left to right, keeping the stack of what is open.

    Open can be: ``'`` and ``"`` quotes, ``$'`` (bash), ``$(``, ``(``, ``${``, ``$((``, or nothing.
    """

    def __init__(self, command: str, values: Mapping[str, str]) -> None:
        self._command = command
        self._values = values
        self._at = 0
        self._out: list[str] = []
        self._open: list[str] = []
        #: Where each open ``$(`` began, to look for what it contains when it closes.
        self._began: list[int] = []
        self._heredoc_ahead = False
        self._lost: str | None = None

    def read(self) -> str:
        while self._at < len(self._command):
            if not self._placeholder():
                self._character()
        return "".join(self._out)

    # ------------------------------------------------------------------ values

    def _placeholder(self) -> bool:
        match = PLACEHOLDER.match(self._command, self._at)
        if match is None:
            return False
        key = match["name"]
        if key is None:  # {{..}}: not ours, but its quotes count, so only the braces are taken
            self._take(2)
            return True
        if key not in self._values:
            return False
        self._out.append(self._escape(key, self._values[key]))
        self._at = match.end()
        return True

    def _escape(self, key: str, value: str) -> str:
        if "\0" in value:
            raise UnsafePlaceholderError(f"{{{key}}}: a command cannot contain a NUL character")
        if self._lost:
            raise UnsafePlaceholderError(f"{{{key}}} cannot be quoted safely {self._lost}{_WAY_OUT}")
        inside = self._open[-1] if self._open else ""
        if inside in ("", "$(", "("):
            return shlex.quote(value)
        if inside == "'":
            return value.replace("'", "'\\''")
        if inside == '"':
            return re.sub(r'([\\"$`])', r"\\\1", value)
        if inside in ("$((", "(("):
            if _NUMBER.fullmatch(value):
                return value
            raise UnsafePlaceholderError(f"{{{key}}} in arithmetic has to be a number{_WAY_OUT}")
        raise UnsafePlaceholderError(f"{{{key}}} cannot be quoted safely inside {inside}...{_WAY_OUT}")

    # ------------------------------------------------------------------ syntax

    def _take(self, count: int) -> None:
        self._out.append(self._command[self._at : self._at + count])
        self._at += count

    def _push(self, what: str) -> None:
        self._open.append(what)
        self._began.append(self._at)
        self._take(len(what))

    def _pop(self) -> None:
        what, began = self._open.pop(), self._began.pop()
        if what == "$(" and _CASE.search(self._command, began, self._at):
            # The ")" of a pattern looks like the end of $(...): from here on the place is not known for sure.
            self._lost = "after a 'case' inside $(...)"
        self._take(1)

    def _starts(self, text: str) -> bool:
        return self._command.startswith(text, self._at)

    def _character(self) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "'":
            self._pop() if self._starts("'") else self._take(1)
        elif self._starts("\\"):
            self._take(2)
        elif inside == "$'":
            self._pop() if self._starts("'") else self._take(1)
        elif self._starts("`"):
            self._backquotes()
        elif not self._opens_or_closes(inside):
            self._plain(inside)

    def _opens_or_closes(self, inside: str) -> bool:
        closing = {'"': '"', "$(": ")", "(": ")", "((": ")", "${": "}"}.get(inside)
        if inside == "$((" and self._starts("))"):
            self._take(1)
            self._pop()
        elif closing is not None and self._starts(closing):
            self._pop()
        elif self._starts("$(("):
            self._push("$((")
        elif self._starts("$(") or self._starts("${"):
            self._push(self._command[self._at : self._at + 2])
        elif inside == '"':
            return False
        elif self._starts("("):
            # Brackets inside arithmetic are arithmetic too; "((" may be bash's arithmetic command.
            arithmetic = inside in ("$((", "((") or self._starts("((")
            self._open.append("((" if arithmetic else "(")
            self._began.append(self._at)
            self._take(1)
        elif self._starts('"'):
            self._push('"')
        elif self._starts("$'") and inside != "${":
            self._push("$'")
        elif self._starts("'") and not (inside == "${" and '"' in self._open):
            self._push("'")
        else:
            return False
        return True

    def _plain(self, inside: str) -> None:
        if inside in ("", "$(", "("):
            before = self._command[self._at - 1] if self._at else "\n"
            if self._starts("#") and before in _WORD_END:
                end = self._command.find("\n", self._at)
                self._take((len(self._command) if end < 0 else end) - self._at)
                return
            if self._starts("<<<"):
                self._take(3)
                return
            if self._starts("<<"):
                self._heredoc_ahead = True
            elif self._starts("\n") and self._heredoc_ahead:
                self._lost = "in or after a here-document"
        self._take(1)

    def _backquotes(self) -> None:
        end = self._at + 1
        while end < len(self._command) and self._command[end] != "`":
            end += 2 if self._command[end] == "\\" else 1
        for match in PLACEHOLDER.finditer(self._command, self._at, end):
            if match["name"] in self._values:
                raise UnsafePlaceholderError(
                    f"{{{match['name']}}} cannot be quoted safely inside `...`; write $(...) instead"
                )
        self._take(end + 1 - self._at)
