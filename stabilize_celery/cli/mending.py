"""``audit`` and ``rebuild``: what nothing drives is found and mended, and an empty broker is refilled."""

from __future__ import annotations

import click

from stabilize_celery.cli.base import EngineCommand, open_engine, user_option
from stabilize_celery.cli.columns import print_columns
from stabilize_celery.cli.ids import find_run
from stabilize_celery.cli.output import print_json
from stabilize_celery.cli.terminal import progress
from stabilize_celery.maintenance import OVERDUE
from stabilize_celery.recovery.problem import Audit


@click.command("audit", cls=EngineCommand, short_help="Find workflows that nothing drives, and mend them.")
@click.argument("id", required=False)
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@click.option(
    "--overdue",
    type=click.FloatRange(0),
    default=OVERDUE,
    show_default=True,
    metavar="SECONDS",
    help="After how long a message that nobody sends is a problem.",
)
@user_option
@click.pass_context
def audit_command(
    ctx: click.Context, id: str | None, repair: bool, overdue: float, user: str, as_json: bool
) -> None:
    """See whether everything that has not ended is driven by something, or waits for something.

    Looks at the workflow ID, or at all of them; workers may run meanwhile.  Exit code 1 if something is wrong and was
    not repaired.
    """
    engine = open_engine(ctx)
    workflow_id = None if id is None else find_run(engine, id).id
    with progress("workflows") as show:
        found = engine.audit(
            workflow_id,
            repair=repair,
            user=user,
            overdue=overdue,
            on_progress=lambda so_far: show(so_far.workflows),
        )
    if as_json:
        print_json(found.to_dict())
    else:
        _print_audit(found, repair)
    if found.unrepaired:
        ctx.exit(1)


def _print_audit(found: Audit, repair: bool) -> None:
    click.echo(f"{found.workflows:,} workflows have not ended")
    for cause, number in found.causes.most_common():
        click.echo(f"  {number:>8,}  {cause}")
    if not found.problems:
        click.echo("Nothing is wrong.")
        return
    print_columns(
        ("workflow", "stage", "kind", "what is wrong", "repaired" if repair else "repair"),
        [
            (
                problem.workflow_id or "",
                problem.stage or "",
                problem.kind,
                problem.what,
                "yes"
                if problem.repaired
                else "with --repair"
                if problem.remedy and not repair
                else problem.advice,
            )
            for problem in found.problems
        ],
    )


@click.command("rebuild", cls=EngineCommand, short_help="Refill an empty broker from the database.")
@click.pass_context
def rebuild_command(ctx: click.Context, as_json: bool) -> None:
    """Send everything again that a worker could handle now: for a broker that was wiped or replaced.

    Workers may run meanwhile: what is delivered twice is handled once.
    """
    engine = open_engine(ctx)
    if engine.app is None:
        raise click.UsageError("name the app whose broker is to be refilled with -A")
    with progress("messages") as show:
        done = engine.rebuild(lambda so_far: show(so_far.sent))
    if as_json:
        print_json({"sent": done.sent, "refused": done.refused})
    else:
        click.echo(f"{done.sent:,} messages were sent again")
    if done.refused:
        click.echo(f"{done.refused:,} were refused by the broker; relays try them again", err=True)
        ctx.exit(1)
