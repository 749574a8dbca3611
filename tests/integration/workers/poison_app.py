"""The deployment of the conformance suite, with a stage that no worker can complete while a file exists."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import tests.conformance.deployment as deployment
from stabilize_celery.handlers.complete_stage import CompleteStageHandler
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteStage

FLAG = "POISON_FLAG"
ERROR = "the handler chokes on it"
_handle = CompleteStageHandler.handle


def _choke(self: CompleteStageHandler, message: CompleteStage, unit: Unit) -> None:
    stage = unit.stage(message.stage_id)
    if stage is not None and stage.ref_id == "poison" and Path(os.environ[FLAG]).exists():
        raise RuntimeError(ERROR)
    _handle(self, message, unit)


if FLAG in os.environ:
    patch.object(CompleteStageHandler, "handle", _choke).start()
    app = deployment.app
