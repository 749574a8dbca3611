"""``cancel``, ``pause``, ``signal`` and the like: one table of what can be done to a workflow that runs.

The engine refuses at once what makes no sense; the rest is written down, and the workers of the workflow do it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from stabilize_celery.cli import base, output
from stabilize_celery.run import WorkflowRun

_STAGE = click.argument("stage")
_REASON = click.option("--reason", default="", help="Why; it is kept in the history.")
_FORCE = click.option("--force", is_flag=True, help="End tasks that do not stop when they are asked to.")
_SIGNAL = (
    click.argument("name"),
    click.argument("data", callback=base.json_object, default="{}", metavar="[JSON]"),
    click.option(
        "persistent",
        "--transient",
        flag_value=False,
        default=True,
        help="Only for a stage that waits now; otherwise it is kept for it.",
    ),
)


@dataclass(frozen=True)
class Verb:
    """One thing that can be done to a workflow.

    Attributes:
        name: of the command.
        do: the method of the run; takes the stage first if the verb is about one, else keywords.
        help: of the command; its first sentence is in the list of commands.
        takes: arguments and options, as decorators, in their order.
    """

    name: str
    do: Callable[..., None]
    help: str
    takes: tuple[Callable[..., Any], ...] = ()


VERBS = (
    Verb(
        "cancel",
        WorkflowRun.cancel,
        "Cancel a workflow.\n\nWhat runs is told to stop, nothing more starts.",
        (_FORCE, _REASON),
    ),
    Verb(
        "cancel-stage",
        WorkflowRun.cancel_stage,
        "Cancel one stage; its branch ends with it.",
        (_STAGE, _REASON),
    ),
    Verb("pause", WorkflowRun.pause, "Pause a workflow.\n\nWhat runs finishes, nothing more starts."),
    Verb("resume", WorkflowRun.resume, "Let a paused workflow go on."),
    Verb(
        "restart",
        WorkflowRun.restart_stage,
        "Run a stage that has ended again, and everything after it.",
        (_STAGE,),
    ),
    Verb(
        "skip",
        WorkflowRun.skip_stage,
        "End a stage as SKIPPED; what comes after it goes on.",
        (_STAGE, _REASON),
    ),
    Verb(
        "signal",
        WorkflowRun.signal,
        'Send a signal to a stage that waits for one.\n\nSuch as `approved \'{"by": "kim"}\'`.',
        (_STAGE, *_SIGNAL),
    ),
)

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
    for decorate in (base.user_option, *reversed(verb.takes), click.argument("id")):
        function = decorate(function)
    return click.command(verb.name, cls=base.EngineCommand, help=verb.help)(function)


for _verb in VERBS:
    commands.add_command(_command(_verb))
