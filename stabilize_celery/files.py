"""Workflow files in Python, YAML and JSON, and the place of what is wrong in one.

Scalars of YAML are what PyYAML makes of them, except that dates and base-60 numbers stay text: ``12:30`` means a time,
not 750.  The limits keep a hostile or broken file from taking the process down with it.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import ValidationError

from stabilize_celery.errors import (
    CircularDependencyError,
    InvalidWorkflowError,
    WorkflowFileError,
    storable_text,
)
from stabilize_celery.file_form import StageForm, WorkflowForm, described, shown_path, workflow_schema
from stabilize_celery.json_values import dumps_json, json_fault
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.validation import validate_workflow
from stabilize_celery.models.workflow import Trigger, Workflow
from stabilize_celery.suggestions import did_you_mean

__all__ = [
    "WorkflowFile", "load_workflow", "read_workflow_file", "workflow_from_dict", "workflow_schema", "workflow_to_dict",
]  # fmt: skip

MAX_FILE_BYTES = 5 * 1024 * 1024
#: Values in a file; what an alias stands for counts every time, so that aliases of aliases cannot explode.
MAX_VALUES = 500_000
#: Levels of lists and mappings inside each other in a file.
MAX_DEPTH = 150


@dataclass(frozen=True)
class WorkflowFile:
    """What a file holds."""

    path: Path
    workflow: Workflow
    #: A Python file as the module it is, which may define more than the workflow.
    module: ModuleType | None = None
    #: The text of a YAML or JSON file, in which the places of errors are looked up.
    text: str | None = None

    def type_error(self, ref: str, task: int, problem: str) -> WorkflowFileError:
        """An error about the type of a task of the stage ``ref``, at its place."""
        refs = [stage.ref_id for stage in self.workflow.top_level_stages()]
        stage = ("stages", refs.index(ref))
        places = [_place(self.text, (*stage, *of)) for of in (("tasks", task, "type"), ("type",), ())]
        # A stage with one task gives its type itself.
        return _error(self.path, problem, places[0] if places[0] != places[2] else places[1])


def load_workflow(path: str | Path) -> Workflow:
    """The workflow that a file describes, new with every call and ready to be started.

    A Python file is run as a module; it defines ``workflow``, a :class:`Workflow` or a function without
    parameters that gives one.  Its folder is added to the end of ``sys.path`` and stays there, so that it can
    import what lies beside it, then and while the workflow runs.  YAML and JSON files have the form of
    :class:`~stabilize_celery.file_form.WorkflowForm`.

    Raises:
        WorkflowFileError: the file is wrong; the message begins with ``file:line:column`` as far as these are known.
    """
    return read_workflow_file(path).workflow


def read_workflow_file(path: str | Path) -> WorkflowFile:
    """What :func:`load_workflow` reads, with the module a Python file is.

    Raises:
        WorkflowFileError: as there.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".py":
        module = _run(path, _read_text(path))
        return WorkflowFile(path, _from_module(path, module), module)
    if suffix not in (".yaml", ".yml", ".json"):
        raise _error(path, "a workflow file ends in .py, .yaml, .yml or .json")
    text = _read_text(path)
    data = _read_json(path, text) if suffix == ".json" else _read_yaml(path, text)
    return WorkflowFile(path, _workflow(path, data, text), text=text)


def workflow_from_dict(data: Mapping[str, Any], where: str = "workflow") -> Workflow:
    """The workflow that data of the form of a workflow file describes.

    Raises:
        WorkflowFileError: what is wrong with it; ``where`` says what it is.
    """
    return _workflow(Path(where), dict(data), None)


def _workflow(path: Path, data: Any, text: str | None) -> Workflow:
    if not isinstance(data, dict):
        raise _error(path, "a workflow file is a mapping with the key 'stages'", _place(text, ()))
    fault = json_fault(data)
    if fault is not None:
        raise _error(path, f"{shown_path(fault[0])}: {fault[1]}", _place(text, fault[0]))
    try:
        form = WorkflowForm.model_validate(data)
    except ValidationError as failure:
        problems = failure.errors(include_url=False)
        places = [
            _place(text, each["loc"], of_key=each["type"] == "extra_forbidden") for each in problems[:10]
        ]
        lines = [
            str(_error(path, described(each), at)) for each, at in zip(problems[:10], places, strict=True)
        ]
        if len(problems) > 10:
            lines.append(f"... and {len(problems) - 10} more")
        raise WorkflowFileError("\n".join(lines)) from None
    try:
        return Workflow.create(
            application=form.application,
            name=form.name if form.name is not None else path.stem,
            stages=[_stage(stage) for stage in form.stages],
            trigger=Trigger(**form.trigger.model_dump()),
            context=form.context,
            config=None if form.config is None else form.config.model_dump(exclude_none=True),
            start_time_expiry=form.start_time_expiry,
        )
    except InvalidWorkflowError as failure:
        raise _error(path, str(failure), _place(text, _refused_part(form, failure))) from failure


def _stage(form: StageForm) -> StageExecution:
    name = form.ref if form.name is None else form.name
    tasks = [(name, form.type)]
    if form.tasks is not None:
        tasks = [(task.type if task.name is None else task.name, task.type) for task in form.tasks]
    return StageExecution(
        ref_id=form.ref,
        type=form.type,
        name=name,
        context=form.context,
        tasks=[TaskExecution.create(*task) for task in tasks],
        requisite_stage_ref_ids=set(form.requires),
        output_reducers=form.output_reducers,
        start_time_expiry=form.start_time_expiry,
    )


def workflow_to_dict(workflow: Workflow) -> dict[str, Any]:
    """What a workflow file would say: the definition without ids, statuses and outputs.

    Loading it again gives an equal definition.  Keys that say what holds anyway are left out; synthetic
    stages are no part of a definition.

    Raises:
        InvalidWorkflowError: values that are not JSON.
    """
    config = {
        "id": workflow.pipeline_config_id,
        "limitConcurrent": workflow.is_limit_concurrent,
        "maxConcurrentExecutions": workflow.max_concurrent_executions,
        "keepWaitingPipelines": workflow.keep_waiting_pipelines,
    }
    document = {
        "application": workflow.application,
        "name": workflow.name,
        **_given(
            context=workflow.context,
            config=_given(**config),
            trigger=workflow.trigger.to_dict() if workflow.trigger != Trigger() else None,
            start_time_expiry=workflow.start_time_expiry,
        ),
        "stages": [_stage_to_dict(stage) for stage in workflow.top_level_stages()],
    }
    text = dumps_json(document, f"workflow {workflow.name}", error=InvalidWorkflowError)
    copied: dict[str, Any] = json.loads(text)
    return copied


def _stage_to_dict(stage: StageExecution) -> dict[str, Any]:
    tasks = [{"name": task.name, "type": task.implementing_class} for task in stage.tasks]
    usual = tasks == [{"name": stage.name, "type": stage.type}]
    return {
        "ref": stage.ref_id,
        "type": stage.type,
        **({} if stage.name == stage.ref_id else {"name": stage.name}),
        **_given(
            requires=sorted(stage.requisite_stage_ref_ids),
            context=stage.own_context,
            output_reducers=stage.output_reducers,
            start_time_expiry=stage.start_time_expiry,
        ),
        **({} if usual else {"tasks": tasks}),
    }


def _given(**values: Any) -> dict[str, Any]:
    times = {key: value.isoformat() for key, value in values.items() if isinstance(value, datetime)}
    return {key: value for key, value in {**values, **times}.items() if value}


def _error(path: Path, problem: str, place: tuple[int, int] | None = None) -> WorkflowFileError:
    """``file:line:column: problem``, the form that editors jump to."""
    where = str(path) if place is None else f"{path}:{place[0]}:{place[1]}"
    # What the file says may be no text that can be printed.
    return WorkflowFileError(storable_text(f"{where}: {problem}"))


def _place(text: str | None, loc: Sequence[str | int], *, of_key: bool = False) -> tuple[int, int] | None:
    """Line and column of the value at ``loc`` or of its key, or of what it would be in; ``None`` if unknown.

    JSON is read as YAML here, with what YAML reads otherwise replaced by something as long.
    """
    try:
        alike = re.sub(r"\\u[0-9a-fA-F]{4}", r"\\u0020", (text or "").replace("\t", " "))
        _check_depth(alike)
        node: Any = yaml.compose(alike, Loader=_Base)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    found = node
    for step in loc:
        key = None
        if isinstance(node, yaml.MappingNode):
            key, node = next((pair for pair in node.value if pair[0].value == step), (None, None))
        else:
            node = node.value[step] if isinstance(node, yaml.SequenceNode) and isinstance(step, int) else None
        found = (key if of_key else node) or node or found
    return None if found is None else (found.start_mark.line + 1, found.start_mark.column + 1)


def _refused_part(form: WorkflowForm, failure: InvalidWorkflowError) -> Sequence[str | int]:
    """Where the stage is that a refusal names."""
    said = str(failure)
    refs = [stage.ref for stage in form.stages]
    if said.startswith("duplicate_ref:"):
        return ("stages", next(index for index, ref in enumerate(refs) if ref in refs[:index]))
    named = failure.stages[0] if isinstance(failure, CircularDependencyError) else None
    for index, ref in enumerate(refs):
        if ref == named or f"stage {ref}:" in said or f"stage {ref} " in said:
            return ("stages", index)
    return ("context",) if "_max_jumps" in said else ("stages",)


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            raise _error(path, "it is not a file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise _error(path, f"it is larger than {MAX_FILE_BYTES:,} bytes")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise _error(path, f"it is not text in UTF-8 (byte {failure.start})") from None
    except (OSError, ValueError) as failure:
        raise _error(path, f"it cannot be read: {failure}") from failure


def _read_json(path: Path, text: str) -> Any:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key[:80]!r} occurs twice")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=refuse_duplicates)
    except json.JSONDecodeError as failure:
        raise _error(path, failure.msg, (failure.lineno, failure.colno)) from None
    except (ValueError, RecursionError) as failure:
        deep = isinstance(failure, RecursionError)
        raise _error(path, "it is nested too deeply" if deep else str(failure)) from None


def _read_yaml(path: Path, text: str) -> Any:
    try:
        _check_depth(text)
        data = yaml.load(text, Loader=_Loader)
        _count(data, {})
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        problem = " ".join(part for part in (failure.context, failure.problem) if part)
        ours = type(failure) is yaml.MarkedYAMLError
        place = (mark.line + 1, mark.column + 1) if mark else None
        raise _error(path, problem if ours else f"not YAML: {problem}", place) from None
    except (yaml.YAMLError, RecursionError) as failure:
        raise _error(path, f"not YAML: {failure}") from None
    except (ValueError, LookupError, OverflowError) as failure:
        raise _error(path, f"a value does not fit its tag: {failure}"[:500]) from None
    if data is None:
        raise _error(path, "the file is empty")
    return data


def _refusal(problem: str, at: Any = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=getattr(at, "start_mark", None))


def _too_many(at: Any = None) -> yaml.MarkedYAMLError:
    return _refusal(f"more than {MAX_VALUES:,} values, counted with what aliases repeat", at)


def _check_depth(text: str) -> None:
    """Refuse what is nested so deeply that composing it would overflow the stack of the C library."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", event)


def _count(value: Any, sizes: dict[int, int]) -> int:
    """How many values it is, those behind aliases counted each time, and one that contains itself once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = 1
        sizes[id(value)] += sum(
            _count(each, sizes) for each in (value.values() if isinstance(value, dict) else value)
        )
        if sizes[id(value)] > MAX_VALUES:
            raise _too_many()
    return sizes[id(value)]


#: The one written in C reads the same language twenty times as fast; not every installation has it.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Refuses keys that occur twice; leaves dates and base-60 numbers as they are written."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._merged: set[int] = set()
        self._pairs = 0

    def flatten_mapping(self, node: Any) -> None:
        if id(node) not in self._merged:
            self._merged.add(id(node))
            seen: set[tuple[str, str]] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in seen:
                    raise _refusal(f"the key {key.value[:80]!r} occurs twice", key)
                seen.add((key.tag, key.value))
            super().flatten_mapping(node)
        self._pairs += len(node.value)
        if self._pairs > MAX_VALUES:
            raise _too_many(node)

    def number(self, node: Any) -> Any:
        if ":" in node.value:
            return self.construct_scalar(node)
        make = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        return make(node)


for _kind in ("timestamp", "value"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Base.construct_scalar)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)


def _from_module(path: Path, module: ModuleType) -> Workflow:
    found = getattr(module, "workflow", None)
    if found is None:
        others = [name for name, value in vars(module).items() if isinstance(value, Workflow)]
        hint = f"; rename {others[0]!r}" if others else did_you_mean("workflow", vars(module))
        raise _error(path, f"it defines no 'workflow', neither a Workflow nor a function{hint}")
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as failure:
            raise _raised(path, failure, "workflow() raised") from failure
    if not isinstance(found, Workflow):
        raise _error(path, f"'workflow' is of type {type(found).__name__}; it must be or give a Workflow")
    try:
        validate_workflow(found)
    except InvalidWorkflowError as failure:
        raise _error(path, str(failure)) from failure
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
        return _error(path, f"not Python: {failure.msg}", (failure.lineno or 1, max(failure.offset or 1, 1)))
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename == str(path)]
    place = (frames[-1].lineno or 1, (frames[-1].colno or 0) + 1) if frames else None
    return _error(path, f"{what} {type(failure).__name__}: {failure}", place)
