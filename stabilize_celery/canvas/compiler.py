"""Celery canvases as workflows: one stage per task, with Celery's own rules for what goes from one to the next.

The previous result is put before a task's arguments unless its signature is immutable; a group's results are a list;
a group followed by a task is a chord.  Every stage keeps what its task returned in the output ``result``, as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stabilize_celery.canvas.call import (
    ERRBACKS,
    RESULT_KEY,
    RESULTS_OF,
    call_context,
    errbacks_of,
    plain,
    stored_options,
)
from stabilize_celery.canvas.references import literal
from stabilize_celery.errors import InvalidOutputError, InvalidWorkflowError

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


#: The task type that puts the results of a group together.
RESULTS_TYPE = "celery_results"
#: A failed task lets the others of its group go on, as Celery does; the workflow fails when they are done.
_POLICY = {"failPipeline": False, "completeOtherBranchesThenFail": True}
#: No stage waits for a callback, and its failure is not the canvas's.
_SIDE_POLICY = {"continuePipelineOnFailure": True}
_CHUNKS = "celery.chunks"
_MAPS = ("celery.map", "celery.starmap")


@dataclass(frozen=True)
class StageOf:
    """A stage of a canvas: the arguments of ``StageExecution.single``."""

    ref_id: str
    kind: str
    context: dict[str, Any]
    requires: frozenset[str]
    name: str


def compile_canvas(canvas: Any) -> list[StageOf]:
    """The stages of a canvas; ``result`` of the last one is what the canvas gives.

    Raises:
        InvalidWorkflowError: it is no canvas, it is empty, or its arguments cannot be stored.
    """
    compiler = _Compiler()
    sig = signature_of(canvas)
    if sig.task == _CHUNKS:
        sig = chunks_of(sig)
    end = compiler.whole_group(sig) if sig.subtask_type == "group" else compiler.canvas(sig, _State())
    if not compiler.stages:
        raise InvalidWorkflowError("the canvas has no tasks")
    leaves = {stage.ref_id for stage in compiler.stages}
    leaves -= {ref for stage in compiler.stages for ref in stage.requires}
    if not isinstance(end.value, str) or leaves != {end.value}:
        own = {RESULTS_OF: end.value}
        compiler.add(RESULTS_TYPE, "results", own, leaves | end.after)
    return compiler.stages


@dataclass(frozen=True)
class _State:
    """How far the canvas has come.

    Attributes:
        value: whose results come next: a ref_id, or a list of such; ``None`` before the first task.
        after: the stages that must have ended.
        args, kwargs: given to the canvas as a whole, for its first tasks.
        options: of what is around it.
        errbacks: signatures to be called when a task fails.
        side: it is a callback.
    """

    value: Any = None
    after: frozenset[str] = frozenset()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    errbacks: tuple[Any, ...] = ()
    side: bool = False

    def then(self, value: Any, after: Iterable[str]) -> _State:
        """The next step: what was given to the first tasks is used up."""
        return _State(value, frozenset(after), errbacks=self.errbacks, side=self.side)

    def inside(self, sig: Any, *, options: Mapping[str, Any] | None = None) -> _State:
        """Within a chain, group or chord that has arguments, options and errbacks of its own."""
        given = self.args if sig.immutable else self.args + tuple(sig.args)
        kwargs = self.kwargs if sig.subtask_type in ("group", "chord") else {**self.kwargs, **sig.kwargs}
        kwargs = {key: value for key, value in kwargs.items() if key not in ("tasks", "header", "body")}
        errbacks = self.errbacks + errbacks_in(sig)
        return _State(
            self.value, self.after, tuple(given), kwargs, self.options if options is None else options,
            errbacks, self.side,
        )  # fmt: skip


class _Compiler:
    def __init__(self) -> None:
        self.stages: list[StageOf] = []

    def add(self, kind: str, name: str, own: dict[str, Any], after: Iterable[str]) -> str:
        ref = f"{len(self.stages) + 1}-{name}"
        self.stages.append(StageOf(ref, kind, own, frozenset(after), name))
        return ref

    def canvas(self, sig: Any, state: _State) -> _State:
        kind = sig.subtask_type
        if kind == "chain":
            end = self._chain(sig, state)
        elif kind == "group":
            within = state.inside(sig, options=merged(sig.options, state.options))
            end = self._group(turned(sig.tasks), within)
        elif kind == "chord":
            end = self._chord(sig, state)
        elif sig.task == _CHUNKS:
            end = self._group(list(chunks_of(sig).tasks), _State(after=state.after, options=state.options))
        else:
            return self._task(sig, state)
        # The last task of a chain and the body of a chord are what a callback of the whole follows.
        for callback in listed(sig.options.get("link")):
            self._callback(callback, end)
        return end

    def whole_group(self, sig: Any) -> _State:
        """A group that is the whole canvas: the one place where groups within it keep their order."""
        within = _State().inside(sig, options=merged(sig.options, {}))
        end = self._group(flat(sig.tasks), within)
        if len(end.value) == 1 and isinstance(end.value[0], list):
            # A single chain that ends in a group: Celery gives that group's results.
            return end.then(end.value[0], end.after)
        return end

    # ------------------------------------------------------------------ the kinds

    def _chain(self, sig: Any, state: _State) -> _State:
        steps = [unrolled(step) for step in steps_of(sig.tasks)]
        kept = [step for step in steps if not is_empty(step)] or steps[:1]
        within = state.inside(sig, options={})
        if not kept:
            return state
        before = replace(within, options=merged(sig.options, state.options))
        for step, following in zip(kept, [*kept[1:], None], strict=True):
            if following is not None and step.subtask_type == "group":
                before = replace(before, errbacks=before.errbacks + errbacks_in(following))
            end = self.canvas(step, before)
            before = replace(within, value=end.value, after=end.after, args=(), kwargs={})
        return end

    def _group(self, tasks: Sequence[Any], state: _State) -> _State:
        ends = [self.canvas(task, state) for task in tasks]
        after = frozenset().union(*(end.after for end in ends)) if ends else state.after
        return state.then([end.value for end in ends], after)

    def _chord(self, sig: Any, state: _State) -> _State:
        tasks = sig.tasks.tasks if getattr(sig.tasks, "subtask_type", None) == "group" else sig.tasks
        within = state.inside(sig, options={})
        body = signature_of(sig.body)
        # What is called when the body fails is called as well when it can never run.
        header = self._group(turned(tasks), replace(within, errbacks=within.errbacks + errbacks_in(body)))
        options = merged(sig.options, state.options)
        after = replace(within, value=header.value, after=header.after, args=(), kwargs={}, options=options)
        return self.canvas(body, after)

    def _task(self, sig: Any, state: _State) -> _State:
        where = f"task {sig.task} of the canvas"
        immutable = bool(sig.immutable)
        args = (() if immutable else state.args) + tuple(sig.args or ())
        kwargs = {**sig.kwargs, **({} if immutable else state.kwargs)}
        if sig.task in _MAPS:
            kwargs = {"task": sig.kwargs["task"], "it": list(sig.kwargs["it"])}
        options = {
            key: value
            for key, value in merged(sig.options, state.options).items()
            if key not in NOT_OF_A_STAGE
        }
        own = {
            "task": str(sig.task),
            "args": literal(storable(list(args), where)),
            "kwargs": literal(storable(kwargs, where)),
            RESULT_KEY: "result",
            **stored_options(options, where),
            **(_SIDE_POLICY if state.side else _POLICY),
        }
        if state.value is not None and not immutable:
            own[RESULTS_OF] = state.value
        errbacks = [stored_errback(errback, where) for errback in (*errbacks_in(sig), *state.errbacks)]
        if errbacks:
            own[ERRBACKS] = [errback for i, errback in enumerate(errbacks) if errback not in errbacks[:i]]
        name = str(sig.task).rsplit(".", 1)[-1]
        if sig.task in _MAPS:
            name = str(dict(sig.kwargs["task"])["task"]).rsplit(".", 1)[-1] + f"-{name}"
        ref = self.add("celery", name, own, state.after)
        end = state.then(ref, {ref})
        for callback in listed(sig.options.get("link")):
            self._callback(callback, end)
        return end

    def _callback(self, callback: Any, end: _State) -> None:
        self.canvas(signature_of(callback), _State(end.value, end.after, side=True))
