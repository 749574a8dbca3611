"""``doctor``: is this deployment fit to run workflows?"""

from __future__ import annotations

import click
from rich.text import Text

from stabilize_celery.cli.base import EngineCommand, open_engine
from stabilize_celery.cli.output import print_json
from stabilize_celery.cli.terminal import knows_only_ascii, make_console
from stabilize_celery.delivery.doctor import Finding, Level, examine

_SYMBOLS = {Level.OK: ("✔", "+"), Level.WARNING: ("!", "!"), Level.ERROR: ("✖", "x")}
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


@click.command("doctor", cls=EngineCommand, short_help="Check broker, database, workers and settings.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long broker and workers have to answer.",
)
@click.pass_context
def doctor_command(ctx: click.Context, timeout: float, as_json: bool) -> None:
    """Check broker, database, workers and settings, and say what to change; exit code 1 if there are errors."""
    engine = open_engine(ctx, check=False)
    found = examine(engine, timeout)
    errors = [finding for finding in found if finding.level is Level.ERROR]
    if as_json:
        print_json({"healthy": not errors, "findings": [finding.to_dict() for finding in found]})
    else:
        _print(found)
    ctx.exit(1 if errors else 0)


def _print(found: list[Finding]) -> None:
    console = make_console()
    area = ""
    for finding in found:
        if finding.area != area:
            area = finding.area
            console.print(Text(area.capitalize(), style="bold"))
        symbol = _SYMBOLS[finding.level][knows_only_ascii(console)]
        line = Text(f"  {symbol} ", style=_STYLES[finding.level])
        console.print(line.append(finding.what, style="default"), soft_wrap=True)
        if finding.advice:
            console.print(Text(f"      {finding.advice}"), soft_wrap=True)
        if finding.why:
            console.print(Text(f"      {finding.why}", style="dim"), soft_wrap=True)
    counts = {level: sum(finding.level is level for finding in found) for level in Level}
    console.print(f"{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings")
