"""Functions as tasks: their parameters are filled from what the stage sees, and checked by their annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from stabilize_celery.errors import ConfigurationError, PermanentError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.suggestions import did_you_mean
from stabilize_celery.tasks.interface import Task, as_result
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import TaskRun, current_run

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_REQUIRED = inspect.Parameter.empty


class CallableTask(Task):
    """A function as a task.

    A parameter annotated ``StageExecution``, or named ``stage``, is given the stage; one annotated ``TaskRun`` the
    run.  A function of one parameter without an annotation is given the stage too.  Any other parameter is given the
    value of that name that the stage sees, converted and checked by its annotation (pydantic); ``**kwargs`` is given
    everything else.  The function may return a :class:`TaskResult`, a dict of outputs, a pydantic model, or ``None``.

    A function whose parameters cannot be filled by name fails with a ConfigurationError when it is first run.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", repr(function))
        self.__doc__ = function.__doc__

    @cached_property
    def _parameters(self) -> tuple[_Parameter, ...]:
        # Read at first use: annotations may name what is defined further down in the user's module.
        return _read_parameters(self.function, self.name)

    def execute(self, stage: StageExecution) -> TaskResult:
        arguments: dict[str, Any] = {}
        positional: list[Any] = []
        for parameter in self._parameters:
            value = parameter.fill(stage, self.name, arguments)
            if parameter.positional_only:
                positional.append(value)
            elif parameter.takes_rest:
                arguments.update(value)
            else:
                arguments[parameter.name] = value
        value = self.function(*positional, **arguments)
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        return as_result(value, f"function {self.name}")


@dataclass(frozen=True)
class _Parameter:
    name: str
    source: str
    default: Any = _REQUIRED
    check: TypeAdapter[Any] | None = None
    positional_only: bool = False

    @property
    def takes_rest(self) -> bool:
        return self.source == "rest"

    def fill(self, stage: StageExecution, function: str, filled: dict[str, Any]) -> Any:
        if self.source == "stage":
            return stage
        if self.source == "run":
            return current_run()
        if self.source == "rest":
            return {key: value for key, value in stage.context.items() if key not in filled}
        if self.name not in stage.context:
            if self.default is not _REQUIRED:
                return self.default
            raise PermanentError(
                f"stage {stage.called}: function {function} needs a value {self.name!r}, and the stage sees none"
                f"{did_you_mean(self.name, map(str, stage.context))}"
            )
        value = stage.context[self.name]
        if self.check is None:
            return value
        try:
            return self.check.validate_python(value)
        except ValidationError as error:
            problems = "; ".join(
                ".".join(["", *map(str, e["loc"])]).lstrip(".") + (": " if e["loc"] else "") + e["msg"]
                for e in error.errors(include_url=False)
            )
            raise PermanentError(
                f"stage {stage.called}: parameter {self.name} of function {function}: {problems} (is {value!r:.200})"
            ) from error


def _read_parameters(function: Callable[..., Any], name: str) -> tuple[_Parameter, ...]:
    try:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    except NameError as error:
        raise ConfigurationError(f"function {name}: an annotation cannot be resolved: {error}") from error
    except (ValueError, TypeError):
        # Some callables written in C do not say what they take.
        return (_Parameter("stage", "stage", positional_only=True),)
    if len(parameters) == 1 and parameters[0].annotation is _REQUIRED and parameters[0].kind in _BY_POSITION:
        return (_Parameter(parameters[0].name, "stage", positional_only=True),)
    return tuple(_parameter(parameter, name) for parameter in parameters)


def _parameter(parameter: inspect.Parameter, function: str) -> _Parameter:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        raise ConfigurationError(
            f"function {function}: *{parameter.name} cannot be filled by name; name its parameters"
        )
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return _Parameter(parameter.name, "rest")
    annotation = parameter.annotation
    positional_only = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
    if annotation is StageExecution or (annotation is _REQUIRED and parameter.name == "stage"):
        return _Parameter(parameter.name, "stage", positional_only=positional_only)
    if annotation is TaskRun:
        return _Parameter(parameter.name, "run", positional_only=positional_only)
    check = None
    if annotation is not _REQUIRED:
        try:
            check = TypeAdapter(annotation)
        except PydanticSchemaGenerationError as error:
            raise ConfigurationError(
                f"function {function}: values cannot be checked by the annotation of {parameter.name}: {error}"
            ) from error
    return _Parameter(parameter.name, "value", parameter.default, check, positional_only)
