"""``flower``: Flower with the Workflows page."""

from __future__ import annotations

import click

from stabilize_celery.cli.base import app_of


@click.command(
    "flower",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
    short_help="Start Flower with the Workflows page.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[FLOWER OPTIONS]")
@click.pass_context
def flower_command(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Start Flower with the Workflows page; takes what `celery flower` takes, and --stabilize_read_only."""
    from stabilize_celery.contrib.flower import install
    from stabilize_celery.errors import StabilizeError

    try:
        app = app_of(ctx)
        if app is None:
            raise click.UsageError("name the app with -A")
        install()
    except StabilizeError as error:
        raise click.ClickException(str(error)) from error
    from celery.bin.base import CLIContext
    from flower.command import flower

    if ctx.obj is None:
        ctx.obj = CLIContext(app=app, no_color=False, workdir=None)
    ctx.invoke(flower, tornado_argv=arguments)
