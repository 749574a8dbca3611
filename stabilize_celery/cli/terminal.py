"""The terminal, or whatever else the output goes to."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

#: Where nobody knows how wide the output may be, such as a log file or a pipe.
_WIDTH_ELSEWHERE = 140


#: What moves the cursor, clears the screen or sets the title of a terminal; a tab and the end of a line do neither.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Text that does nothing to the terminal, whoever wrote the names and errors in it: an escape is ``\\x1b``."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


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
    known = is_terminal(stream) or "COLUMNS" in os.environ
    return _Console(file=stream, width=None if known else _WIDTH_ELSEWHERE, highlight=False)


def is_terminal(stream: object) -> bool:
    """Whether a person sees it as it is written."""
    ask = getattr(stream, "isatty", None)
    return bool(ask is not None and ask())


def knows_only_ascii(console: Console) -> bool:
    """Whether the output cannot take symbols."""
    return not console.encoding.lower().startswith("utf")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int], None]]:
    """Show a person how many of something are done; nobody else is shown anything."""
    if not is_terminal(sys.stderr):
        yield lambda number: None
        return
    with make_console(sys.stderr).status(f"0 {what}") as status:
        yield lambda number: status.update(f"{number:,} {what}")
