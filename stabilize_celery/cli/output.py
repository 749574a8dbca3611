"""What is printed: JSON for programs, text for people; without secrets, and without orders to the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TextIO

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.redaction import DEFAULT_KEYS, redact

#: The width of lines in a log file or a pipe.
_WIDTH_ELSEWHERE = 140
#: What moves the cursor, clears the screen or sets the title of a terminal; a tab and the end of a line do neither.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: A command works on one engine, whose settings these are.
_keys: tuple[str, ...] = DEFAULT_KEYS

#: status -> (symbol, symbol in ASCII, rich style): each can be told from the others without colour.
LOOKS: Mapping[S, tuple[str, str, str]] = {
    S.NOT_STARTED: ("○", "o", "dim"),
    S.RUNNING: ("▶", ">", "bold blue"),
    S.PAUSED: ("‖", "=", "magenta"),
    S.SUSPENDED: ("◌", "?", "magenta"),
    S.BUFFERED: ("◔", "~", "yellow"),
    S.REDIRECT: ("↷", "^", "cyan"),
    S.SUCCEEDED: ("✔", "+", "green"),
    S.SKIPPED: ("»", "-", "dim"),
    S.FAILED_CONTINUE: ("!", "!", "yellow"),
    S.TERMINAL: ("✘", "x", "bold red"),
    S.STOPPED: ("■", "#", "red"),
    S.CANCELED: ("⊘", "/", "dim"),
}


# ---------------------------------------------------------------------------------------------- secrets, terminals


def hide(keys: Iterable[str]) -> None:
    """From now on, hide the values under these keys."""
    global _keys  # noqa: PLW0603
    _keys = tuple(keys)


def shown(value: Any) -> Any:
    """A copy of a value without secrets."""
    return redact(value, _keys)


def harmless(text: str) -> str:
    """Text without control characters, which names and errors of users may have: an escape is ``\\x1b``."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def printable(value: Any) -> str:
    """A value as it may be written to a terminal."""
    return harmless(str(shown(value)))


def escape_unencodable() -> None:
    """Write characters that the encoding of the output lacks as escapes, as JSON does, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


class _Console(Console):
    """Only its own styles and movements reach the terminal, none that come with what it prints."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and _CONTROL.search(segment.text):
                segment = Segment(harmless(segment.text), segment.style)
            yield segment


def make_console(file: TextIO | None = None) -> Console:
    """A console on a file, by default standard output; lines in a log are not cut to 80 columns."""
    stream = sys.stdout if file is None else file
    known = stream.isatty() or "COLUMNS" in os.environ
    return _Console(file=stream, width=None if known else _WIDTH_ELSEWHERE, highlight=False)


def knows_only_ascii(console: Console) -> bool:
    """Whether the output cannot take symbols."""
    return not console.encoding.lower().startswith("utf")


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int], None]]:
    """Show how many of something are done, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    with make_console(sys.stderr).status(f"0 {what}") as status:
        yield lambda number: status.update(f"{number:,} {what}")


# ---------------------------------------------------------------------------------------------- JSON, tables


def print_json(value: Any) -> None:
    """One JSON document."""
    written = json.dumps(shown(value), indent=2, ensure_ascii=False)
    # JSON itself leaves these as they are, and some terminals obey them.
    click.echo(re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", written))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table of text as it is, not as rich's markup."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.upper(), overflow="fold", no_wrap=column in ("id", "status", "started", "at"))
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table of text."""
    console = make_console()
    with console.capture() as written:
        console.print(make_table(columns, rows))
    # A table fills its last column with spaces.
    click.echo(re.sub(r" +$", "", written.get(), flags=re.MULTILINE), nl=False)


# ---------------------------------------------------------------------------------------------- words


def styled(status: S, width: int = 0) -> Text:
    """A status in its colour, filled up with spaces to a width."""
    return Text(f"{status!s:<{width}}", style=LOOKS[status][2])


def duration(seconds: float) -> str:
    """As precise as is of interest: ``0.04s``, ``12.3s``, ``3m 05s``, ``2h 05m``, ``3d 04h``."""
    seconds = max(0.0, seconds)
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def elapsed(start: datetime | None, end: datetime | None, now: datetime) -> str:
    """How long something has taken or is taking; nothing before it starts."""
    return "" if start is None else duration(((end or now) - start).total_seconds())


def local_time(moment: datetime | None) -> str:
    """A time on the clock of the reader, to the second."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def stages_text(number: int) -> str:
    """``1 stage``, ``2,000 stages``."""
    return f"{number:,} stage{'s' * (number != 1)}"
