"""Plain tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from stabilize_celery.cli import output


def print_columns(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of text as it is."""
    table = output._table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))
    output._print(table)
