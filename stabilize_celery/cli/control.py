"""``cancel``, ``pause``, ``signal`` and the like: a command for each verb of a run, which takes what its method takes.

The engine refuses at once what makes no sense; the rest is written down, and the workers of the workflow do it.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import click

from stabilize_celery.cli import base, output
from stabilize_celery.run import VERBS

#: Parameter of a method -> argument or option of the command.
_TAKES: dict[str, Callable[..., Any]] = {
    "self": click.argument("id"),
    "ref_id": click.argument("ref_id", metavar="STAGE"),
    "name": click.argument("name"),
    "data": click.argument("data", callback=base.json_object, default="{}", metavar="[JSON]"),
    "persistent": click.option(
        "persistent",
        "--transient",
        flag_value=False,
        default=True,
        help="Only for a stage that waits now; otherwise it is kept for it.",
    ),
    "force": click.option("--force", is_flag=True, help="End tasks that do not stop when they are asked to."),
    "reason": click.option("--reason", default="", help="Why; it is kept in the history."),
    "user": base.user_option,
}

commands = base.Commands()


def _command(verb: str) -> click.Command:
    method, help = VERBS[verb]

    def call(ctx: click.Context, id: str, as_json: bool, **given: Any) -> None:
        engine = base.open_engine(ctx)
        run = base.find_run(engine, id)
        method(run, **given)
        stage = given.get("ref_id")
        if as_json:
            output.print_json({"id": run.id, "command": verb, "stage": stage, "accepted": True})
        else:
            about = "" if stage is None else f"stage {stage} of "
            click.echo(output.harmless(f"{verb} of {about}workflow {run.id} is under way"))
        base.hint_without_workers(engine)

    function: Callable[..., Any] = click.pass_context(call)
    for name in reversed(signature(method).parameters):
        function = _TAKES[name](function)
    return click.command(verb, cls=base.EngineCommand, help=help)(function)


for _verb in VERBS:
    commands.add_command(_command(_verb))
