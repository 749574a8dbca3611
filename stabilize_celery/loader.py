"""Workflows from files: Python, YAML or JSON."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from stabilize_celery.dag.validation import validate_workflow
from stabilize_celery.errors import InvalidWorkflowError, WorkflowFileError
from stabilize_celery.files.convert import place_of_type, to_workflow, workflow_to_dict
from stabilize_celery.files.document import Document, read_json, read_text, read_yaml
from stabilize_celery.files.places import Place, file_error
from stabilize_celery.files.schema import read_form
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.suggestions import did_you_mean

__all__ = ["WorkflowFile", "load_workflow", "read_workflow_file", "workflow_from_dict", "workflow_to_dict"]

_READERS = {".yaml": read_yaml, ".yml": read_yaml, ".json": read_json}


@dataclass(frozen=True)
class WorkflowFile:
    """What a file holds."""

    path: Path
    workflow: Workflow
    #: A Python file as the module it is, which may define more than the workflow.
    module: ModuleType | None = None
    #: The data of a YAML or JSON file.
    document: Document | None = None

    def error_of_type(self, stage_ref: str, task_type: str, problem: str) -> WorkflowFileError:
        """An error about the type of a stage or of one of its tasks, at its place."""
        if self.document is None:
            return file_error(self.path, problem)
        refs = [stage.ref_id for stage in self.workflow.top_level_stages()]
        index = refs.index(stage_ref)
        return self.document.error(problem, place_of_type(self.document, index, task_type))


def load_workflow(path: str | Path) -> Workflow:
    """The workflow that a file describes, new with every call and ready to be started.

    A Python file is run as a module; it defines ``workflow``, a :class:`Workflow` or a function without
    parameters that gives one.  Its folder is added to the end of ``sys.path`` and stays there, so that it can
    import what lies beside it, then and while the workflow runs.  YAML and JSON files have the form of
    :class:`~stabilize_celery.files.schema.WorkflowForm`.

    Raises:
        WorkflowFileError: whatever is wrong with the file; the message begins with ``file:line:column`` as
            far as these are known.
    """
    return read_workflow_file(path).workflow


def workflow_from_dict(data: Mapping[str, Any], where: str = "workflow") -> Workflow:
    """The workflow that data of the form of a workflow file describes.

    Raises:
        WorkflowFileError: what is wrong with it; ``where`` says what it is.
    """
    document = Document(Path(where), dict(data), lambda: None)
    return to_workflow(document, read_form(document))


def read_workflow_file(path: str | Path) -> WorkflowFile:
    """What :func:`load_workflow` reads, with the module a Python file is.

    Raises:
        WorkflowFileError: as there.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".py":
        module = _run(path, read_text(path))
        return WorkflowFile(path, _from_module(path, module), module)
    if suffix not in _READERS:
        raise file_error(path, "a workflow file ends in .py, .yaml, .yml or .json")
    document = _READERS[suffix](path)
    return WorkflowFile(path, to_workflow(document, read_form(document)), document=document)


def _from_module(path: Path, module: ModuleType) -> Workflow:
    found = getattr(module, "workflow", None)
    if found is None:
        others = [name for name, value in vars(module).items() if isinstance(value, Workflow)]
        hint = f"; rename {others[0]!r}" if others else did_you_mean("workflow", vars(module))
        raise file_error(path, f"it defines no 'workflow', neither a Workflow nor a function{hint}")
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as failure:
            raise _raised(path, failure, "workflow() raised") from failure
    if not isinstance(found, Workflow):
        raise file_error(path, f"'workflow' is of type {type(found).__name__}; it must be or give a Workflow")
    try:
        validate_workflow(found)
    except InvalidWorkflowError as failure:
        raise file_error(path, str(failure)) from failure
    return found


def _run(path: Path, text: str) -> ModuleType:
    name = f"stabilize_workflow_file_{path.stem}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    # Dataclasses and pickle look a class's module up by its name.
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as failure:
        del sys.modules[name]
        raise _raised(path, failure, "running it raised") from failure
    return module


def _raised(path: Path, failure: BaseException, what: str) -> WorkflowFileError:
    if isinstance(failure, SyntaxError) and failure.filename == str(path):
        at = Place(failure.lineno or 1, max(failure.offset or 1, 1))
        return file_error(path, f"not Python: {failure.msg}", at)
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename == str(path)]
    place = Place(frames[-1].lineno or 1, (frames[-1].colno or 0) + 1) if frames else None
    return file_error(path, f"{what} {type(failure).__name__}: {failure}", place)
