"""Which task a type name stands for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from stabilize_celery.errors import ConfigurationError, TaskNotFoundError
from stabilize_celery.suggestions import did_you_mean
from stabilize_celery.tasks.function import CallableTask
from stabilize_celery.tasks.interface import NoOpTask, Task

TaskSource = type[Task] | Task | Callable[..., Any]
_Known = dict[str, Task | type[Task]]


class TaskRegistry:
    """Task types by name.

    A class is instantiated once per resolve, an instance is shared, a function is wrapped.  A name is looked up as
    it is, then by its last dotted part, then that in lower case, then among the aliases.
    """

    def __init__(self) -> None:
        self._tasks: _Known = {}
        self._aliases: dict[str, str] = {}
        self._builtin: _Known = {}
        #: Types of another engine, see :meth:`adopt`.
        self._adopted: _Known = {}
        #: Built-in types that this deployment does without.
        self._excluded: set[str] = set()
        self.register("noop", NoOpTask)
        self.mark_builtin()

    def register(
        self, name: str, task: TaskSource, aliases: Iterable[str] = (), *, replace: bool = False
    ) -> None:
        """Register a task class, an instance, or a function.

        One of the same name takes the place of a built-in or adopted type, and of itself: a module may be imported again.

        Args:
            name: of the type.
            task: the class, instance or function.
            aliases: other names of it.
            replace: let it take the place of any other.

        Raises:
            ConfigurationError: it is nothing that can be run, or another has that name.
        """
        if not name:
            raise ConfigurationError("a task type needs a name")
        if not callable(task) and not isinstance(task, Task):
            raise ConfigurationError(f"task type {name}: {task!r} is neither a Task nor a function")
        if not isinstance(task, Task) and not (isinstance(task, type) and issubclass(task, Task)):
            task = CallableTask(task)
        known = self._tasks.get(name)
        gives_way = known in (None, task, self._builtin.get(name), self._adopted.get(name))
        if known is not None and not replace and not gives_way:
            ours, theirs = _origin(known), _origin(task)
            if ours != theirs or "<" in ours[1]:
                raise ConfigurationError(
                    f"task type {name!r} is registered already: {ours[1]} of {ours[0]}, and now {theirs[1]} of "
                    f"{theirs[0]}; give one of them another name"
                )
        self._tasks[name] = task
        self._aliases |= dict.fromkeys((*aliases, *getattr(task, "aliases", ())), name)

    def exclude(self, names: Iterable[str]) -> None:
        """Do without some built-in types, unless others were registered under their names."""
        for name in names:
            if self._builtin.get(name) is not None and self._tasks.get(name) is self._builtin[name]:
                del self._tasks[name]
                self._aliases = {alias: of for alias, of in self._aliases.items() if of != name}
                self._excluded.add(name)

    def why_unknown(self, name: str) -> str:
        """The error text of a type that nothing is registered for."""
        if self.is_excluded(name):
            return f"task type {name!r} is left out of this deployment by the setting stabilize_builtin_tasks"
        return f"no task type {name!r} is registered{self.suggest(name)}"

    def is_excluded(self, name: str) -> bool:
        """Whether a type is one that this deployment does without."""
        return not self.knows(name) and name.rsplit(".", 1)[-1].lower().removesuffix("task") in self._excluded

    def source(self, name: str) -> Task | type[Task] | None:
        """What is registered under exactly that name."""
        return self._tasks.get(name)

    def mark_builtin(self) -> None:
        """What is registered by now came with the package."""
        self._builtin = dict(self._tasks)

    @property
    def has_own_types(self) -> bool:
        """Whether it has more than the built-in types."""
        return bool(self._tasks.keys() - self._builtin.keys())

    def adopt(self, other: TaskRegistry) -> None:
        """Take over the types of another registry, but for its built-in ones."""
        own = {name: task for name, task in other._tasks.items() if other._builtin.get(name) is not task}
        self._tasks |= own
        # They give way to the types of this engine, as the built-in ones do: a test replaces what an app has.
        self._adopted |= own
        self._aliases |= {alias: name for alias, name in other._aliases.items() if name in own}

    def resolve(self, name: str) -> Task:
        """A task ready to run.

        Raises:
            TaskNotFoundError: nothing is registered under that name; suggests similar ones.
        """
        source = self._tasks[self.name_of(name)]
        return source if isinstance(source, Task) else source()

    def knows(self, name: str) -> bool:
        """Whether a type of that name can be resolved."""
        return self._find(name) is not None

    def overrides(self, name: str, hook: str) -> bool:
        """Whether the type has its own version of a hook such as ``on_cleanup``; false for unknown types."""
        source = self._tasks.get(self._find(name) or "")
        cls = source if isinstance(source, type) else type(source)
        return source is not None and getattr(cls, hook) is not getattr(Task, hook)

    def names(self) -> list[str]:
        """Every registered name."""
        return sorted(self._tasks)

    def suggest(self, name: str) -> str:
        """A hint at a similar type name, or nothing."""
        return did_you_mean(name, [*self._tasks, *self._aliases])

    def _find(self, name: str) -> str | None:
        last = name.rsplit(".", 1)[-1]
        for candidate in (name, last, last.lower()):
            if candidate in self._tasks:
                return candidate
            if candidate in self._aliases:
                return self._aliases[candidate]
        return None

    def name_of(self, name: str) -> str:
        """The name under which a type is registered that a stage may call by an alias or in longer form.

        Raises:
            TaskNotFoundError: nothing is registered under that name; suggests similar ones.
        """
        found = self._find(name)
        if found is None:
            excluded = self.is_excluded(name)
            unknown = f"No task found for type: {name}{self.suggest(name)}"
            raise TaskNotFoundError(self.why_unknown(name) if excluded else unknown)
        return found


def _origin(source: Task | type[Task]) -> tuple[str, str]:
    """The file and the name of what was registered: the same after its module was imported again, or run as a script."""
    made_by: Any = source.function if isinstance(source, CallableTask) else source
    if isinstance(made_by, Task):
        made_by = type(made_by)
    name = getattr(made_by, "__qualname__", None) or repr(made_by)
    module = getattr(made_by, "__module__", None) or ""
    return getattr(sys.modules.get(module), "__file__", None) or module, name
