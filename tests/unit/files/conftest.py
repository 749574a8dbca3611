"""Files written for one test."""

from __future__ import annotations

import pytest

from stabilize_celery.errors import WorkflowFileError
from stabilize_celery.files import load_workflow


@pytest.fixture
def load(tmp_path):
    def load(text: str | bytes, name: str = "flow.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_workflow(path)

    return load


@pytest.fixture
def refusal(load, tmp_path):
    """The message of the refusal, without the folder."""

    def refusal(text: str | bytes, name: str = "flow.yaml") -> str:
        with pytest.raises(WorkflowFileError) as caught:
            load(text, name)
        return str(caught.value).replace(str(tmp_path) + "/", "")

    return refusal
