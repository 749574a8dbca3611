"""``cancel``, ``pause``, ``signal`` and the like: the controls of a run as commands.

The engine refuses at once what makes no sense; the rest is written down, and the workers of the workflow do it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from stabilize_celery.cli import base, output
from stabilize_celery.run import VERBS, Verb

#: How what a verb needs and takes is given, in the order of the command's arguments.
_GIVEN = {
    "name": click.argument("name"),
    "data": click.argument("data", callback=base.json_object, default="{}", metavar="[JSON]"),
    "reason": click.option("--reason", default="", help="Why; it is kept in the history."),
    "force": click.option("--force", is_flag=True, help="End tasks that do not stop when they are asked to."),
    "persistent": click.option(
        "persistent",
        "--transient",
        flag_value=False,
        default=True,
        help="Only for a stage that waits now; otherwise it is kept for it.",
    ),
}

commands = base.Commands()


def _command(verb: Verb) -> click.Command:
    def call(ctx: click.Context, id: str, as_json: bool, stage: str | None = None, **given: Any) -> None:
        engine = base.open_engine(ctx)
        run = base.find_run(engine, id)
        verb.do(run, *(() if stage is None else (stage,)), **given)
        if as_json:
            output.print_json({"id": run.id, "command": verb.name, "stage": stage, "accepted": True})
        else:
            about = f"stage {stage} of " if stage else ""
            click.echo(output.harmless(f"{verb.name} of {about}workflow {run.id} is under way"))
        base.hint_without_workers(engine)

    function: Callable[..., Any] = click.pass_context(call)
    given = [decorate for name, decorate in _GIVEN.items() if name in verb.needs + verb.takes]
    stage = [click.argument("stage")] if verb.of_stage else []
    for decorate in (base.user_option, *reversed(given), *stage, click.argument("id")):
        function = decorate(function)
    return click.command(verb.name, cls=base.EngineCommand, help=verb.help)(function)


for _verb in VERBS:
    commands.add_command(_command(_verb))
