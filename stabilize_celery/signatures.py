"""Signatures, as Celery takes them apart: what :mod:`stabilize_celery.canvas` asks of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stabilize_celery.errors import InvalidOutputError, InvalidWorkflowError
from stabilize_celery.references import literal
from stabilize_celery.tasks.celery_call import call_context, errbacks_of
from stabilize_celery.tasks.celery_task import plain

#: Options that belong to the canvas as it runs in Celery, or are dealt with here.
NOT_OF_A_STAGE = (
    "task_id", "group_id", "group_index", "chord", "chain", "root_id", "parent_id", "reply_to", "link", "link_error",
)  # fmt: skip


def signature_of(sig: Any) -> Any:
    """A signature of the right class, whether it was one or its stored form."""
    from celery.canvas import Signature

    if isinstance(sig, Signature) and type(sig) is not Signature:
        return sig
    if isinstance(sig, Mapping) and "task" in sig:
        return Signature.from_dict(dict(sig)) if not isinstance(sig, Signature) else sig
    raise InvalidWorkflowError(
        f"a canvas is made of Celery signatures, not of {type(sig).__name__}: {sig!r:.80}"
    )


def steps_of(tasks: Iterable[Any]) -> list[Any]:
    """The steps of a chain, those of chains within it among them."""
    found: list[Any] = []
    for task in map(signature_of, tasks):
        plain_chain = task.subtask_type == "chain" and not (
            task.options or task.args or task.kwargs.keys() - {"tasks"}
        )
        found += steps_of(task.tasks) if plain_chain else [task]
    return found


def flat(tasks: Iterable[Any]) -> list[Any]:
    """The tasks of a group, those of groups within it among them."""
    found: list[Any] = []
    for task in map(signature_of, tasks):
        if task.subtask_type == "group":
            found += flat(task.tasks)
        elif not is_empty(task):
            found.append(task)
    return found


def turned(tasks: Iterable[Any]) -> list[Any]:
    """The same where Celery freezes the group first: it takes each group within it apart from its end."""
    found: list[Any] = []
    stack = [signature_of(task) for task in tasks][::-1]
    while stack:
        task = stack.pop()
        if task.subtask_type == "group":
            stack += [signature_of(inner) for inner in task.tasks]
        elif not is_empty(task):
            found.append(task)
    return found


def chunks_of(sig: Any) -> Any:
    """Chunks as the group they are; Celery itself forgets this when it has stored them."""
    from celery.canvas import chunks

    return chunks.from_dict(dict(sig)).group()


def unrolled(sig: Any) -> Any:
    """A group of one task within a chain is that task."""
    if sig.subtask_type == "group":
        tasks = list(sig.tasks)
        if len(tasks) == 1:
            return unrolled(signature_of(tasks[0]))
    return sig


def is_empty(sig: Any) -> bool:
    """Whether it is a group or chain of nothing."""
    return sig.subtask_type in ("group", "chain") and not list(sig.tasks)


def merged(own: Mapping[str, Any], around: Mapping[str, Any]) -> dict[str, Any]:
    """Its options under those of what is around it; callbacks are its own."""
    return {
        **{key: value for key, value in own.items() if key not in NOT_OF_A_STAGE},
        **around,
        **_links(own),
    }


def _links(own: Mapping[str, Any]) -> dict[str, Any]:
    return {key: own[key] for key in ("link", "link_error") if key in own}


def listed(value: Any) -> tuple[Any, ...]:
    """The signatures in an option that holds none, one or several."""
    if not value:
        return ()
    return (value,) if isinstance(value, Mapping) else tuple(value)


def errbacks_in(sig: Any) -> tuple[Any, ...]:
    """What is called when its task fails."""
    return tuple(errbacks_of(sig.options))


def stored_errback(sig: Any, where: str) -> dict[str, Any]:
    """An errback as the stage that calls it, its arguments as they are."""
    sig = signature_of(sig)
    call = {
        **sig,
        "args": literal(storable(list(sig.args), where)),
        "kwargs": literal(storable(sig.kwargs, where)),
    }
    return {**call_context(call, f"{where}: link_error"), "immutable": bool(sig.immutable)}


def storable(value: Any, where: str) -> Any:
    """Arguments in the form Celery's JSON gives them.

    Raises:
        InvalidWorkflowError: it cannot.
    """
    try:
        return plain(value)
    except InvalidOutputError as error:
        raise InvalidWorkflowError(f"{where}: arguments are stored as JSON: {error}") from error
