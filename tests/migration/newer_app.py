"""What workers of the newer release are started with; run as a program, an engine of it in one process."""

from __future__ import annotations

import sys

from tests.migration.releases import become_newer

become_newer()

from stabilize_celery import Stabilize  # noqa: E402
from tests.conformance import behaviours, deployment  # noqa: E402
from tests.migration.dumped import answer_all  # noqa: E402

if deployment.BROKER in deployment.os.environ:
    app, stabilize = deployment.app, deployment.stabilize

if __name__ == "__main__":
    with Stabilize.embedded(sys.argv[1]) as embedded:
        behaviours.register(embedded)
        answer_all(embedded)
        embedded.processor.drain(timeout=120)
