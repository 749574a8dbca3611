"""``python -m stabilize_celery.cli``: the command line where no script is installed."""

from __future__ import annotations

from stabilize_celery.cli import main

main(prog_name="stabilize-celery")
