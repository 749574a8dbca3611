"""Between the form of a workflow file and the workflow it describes."""

from __future__ import annotations

import json
from typing import Any

from stabilize_celery.errors import CircularDependencyError, InvalidWorkflowError, WorkflowFileError
from stabilize_celery.files.document import Document
from stabilize_celery.files.schema import SPELLINGS, StageForm, WorkflowForm
from stabilize_celery.jsonable import dumps_json
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.trigger import Trigger
from stabilize_celery.models.workflow import Workflow


def to_workflow(document: Document, form: WorkflowForm) -> Workflow:
    """The workflow of a file, checked as every new workflow is.

    Raises:
        WorkflowFileError: the workflow is refused; the place is that of the stage the refusal names.
    """
    try:
        return Workflow.create(
            application=form.application,
            name=form.name if form.name is not None else document.path.stem,
            stages=[_stage(stage) for stage in form.stages],
            trigger=Trigger(**form.trigger.model_dump()),
            context=form.context,
            config=None if form.config is None else form.config.model_dump(exclude_none=True),
            start_time_expiry=form.start_time_expiry,
        )
    except InvalidWorkflowError as failure:
        raise _refused(document, form, failure) from failure


def workflow_to_dict(workflow: Workflow) -> dict[str, Any]:
    """What a workflow file would say: the definition without ids, statuses and outputs.

    Loading it again gives an equal definition.  Keys that say what holds anyway are left out; synthetic
    stages are no part of a definition.

    Raises:
        InvalidWorkflowError: values that are not JSON.
    """
    document: dict[str, Any] = {"application": workflow.application, "name": workflow.name}
    if workflow.context:
        document["context"] = workflow.context
    config = _config(workflow)
    if config:
        document["config"] = config
    if workflow.trigger != Trigger():
        document["trigger"] = workflow.trigger.to_dict()
    if workflow.start_time_expiry is not None:
        document["start_time_expiry"] = workflow.start_time_expiry.isoformat()
    document["stages"] = [_stage_to_dict(stage) for stage in workflow.top_level_stages()]
    text = dumps_json(document, f"workflow {workflow.name}", error=InvalidWorkflowError)
    copied: dict[str, Any] = json.loads(text)
    return copied


def _stage(form: StageForm) -> StageExecution:
    name = form.ref if form.name is None else form.name
    tasks = [TaskExecution.create(name, form.type)]
    if form.tasks is not None:
        tasks = [
            TaskExecution.create(task.type if task.name is None else task.name, task.type)
            for task in form.tasks
        ]
    return StageExecution(
        ref_id=form.ref,
        type=form.type,
        name=name,
        context=form.context,
        tasks=tasks,
        requisite_stage_ref_ids=set(form.requires),
        output_reducers=form.output_reducers,
        start_time_expiry=form.start_time_expiry,
    )


def _refused(document: Document, form: WorkflowForm, failure: InvalidWorkflowError) -> WorkflowFileError:
    said = str(failure)
    named = failure.stages[0] if isinstance(failure, CircularDependencyError) else None
    if said.startswith("duplicate_ref:"):
        refs = [stage.ref for stage in form.stages]
        again = next(index for index, ref in enumerate(refs) if ref in refs[:index])
        return document.error(said, place_in_stage(document, again, "ref"))
    for index, stage in enumerate(form.stages):
        if stage.ref == named or f"stage {stage.ref}:" in said or f"stage {stage.ref} " in said:
            return document.error(said, _guilty(document, form, index, said))
    if said.startswith(f"workflow {form.name or document.path.stem}: _max_jumps"):
        return document.error(said, ("context", "_max_jumps"))
    return document.error(said, ("stages",), at_key=True)


def _guilty(document: Document, form: WorkflowForm, index: int, said: str) -> tuple[str | int, ...]:
    """What of a stage a refusal is about, as far as its words tell."""
    stage = form.stages[index]
    if said.startswith(("unknown_ref:", "self_edge:")):
        known = {other.ref for other in form.stages if other is not stage}
        wrong = next((n for n, ref in enumerate(stage.requires) if ref not in known), 0)
        return (*place_in_stage(document, index, "requires"), wrong)
    for key in stage.output_reducers:
        if f"output_reducers[{key!r}]" in said:
            return (*place_in_stage(document, index, "output_reducers"), key)
    if ": stageEnabled" in said:
        return (*place_in_stage(document, index, "context"), "stageEnabled", "expression")
    return ("stages", index)


def place_in_stage(document: Document, index: int, key: str) -> tuple[str | int, ...]:
    """Where the value of a stage's key stands, however the key is spelled."""
    written = document.data["stages"][index]
    spelled = next((name for name in (key, *SPELLINGS.get(key, ())) if name in written), key)
    return ("stages", index, spelled)


def place_of_type(document: Document, index: int, task_type: str) -> tuple[str | int, ...]:
    """Where a stage, or one of its tasks, names a task type."""
    tasks = document.data["stages"][index].get("tasks")
    for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
        if task == task_type:
            return ("stages", index, "tasks", number)
        key = next(
            (key for key in ("type", *SPELLINGS["type"]) if isinstance(task, dict) and key in task), None
        )
        if key is not None and task[key] == task_type:
            return ("stages", index, "tasks", number, key)
    return ("stages", index, "type")


def _config(workflow: Workflow) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if workflow.pipeline_config_id:
        config["id"] = workflow.pipeline_config_id
    for key, value in (
        ("limitConcurrent", workflow.is_limit_concurrent),
        ("maxConcurrentExecutions", workflow.max_concurrent_executions),
        ("keepWaitingPipelines", workflow.keep_waiting_pipelines),
    ):
        if value:
            config[key] = value
    return config


def _stage_to_dict(stage: StageExecution) -> dict[str, Any]:
    said: dict[str, Any] = {"ref": stage.ref_id, "type": stage.type}
    if stage.name != stage.ref_id:
        said["name"] = stage.name
    if stage.requisite_stage_ref_ids:
        said["requires"] = sorted(stage.requisite_stage_ref_ids)
    if stage.own_context:
        said["context"] = stage.own_context
    tasks = [{"name": task.name, "type": task.implementing_class} for task in stage.tasks]
    if tasks != [{"name": stage.name, "type": stage.type}]:
        said["tasks"] = tasks
    if stage.output_reducers:
        said["output_reducers"] = stage.output_reducers
    if stage.start_time_expiry is not None:
        said["start_time_expiry"] = stage.start_time_expiry.isoformat()
    return said
