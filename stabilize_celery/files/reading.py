"""Read a workflow file, and say at which line it is wrong.

Scalars are what PyYAML makes of them, except that dates and base-60 numbers stay text: ``12:30`` means a time, not 750.
The limits keep a hostile or broken file from taking the process down with it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from stabilize_celery.dag.validation import validate_workflow
from stabilize_celery.errors import CircularDependencyError, InvalidWorkflowError, WorkflowFileError
from stabilize_celery.files.forms import (
    Loc,
    WorkflowForm,
    place_in_stage,
    place_of_type,
    read_form,
    to_workflow,
)
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.suggestions import did_you_mean

MAX_FILE_BYTES = 5 * 1024 * 1024
#: Values in a file; what an alias stands for counts every time, so that aliases of aliases cannot explode.
MAX_VALUES = 500_000
#: Levels of lists and mappings inside each other in a file.
MAX_DEPTH = 150
#: Python writes no number of more than 4,300 digits.
_MAX_BITS = 14_000

#: The one written in C reads the same language twenty times as fast; not every installation has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
            return _error(self.path, problem)
        refs = [stage.ref_id for stage in self.workflow.top_level_stages()]
        index = refs.index(stage_ref)
        return self.document.error(problem, place_of_type(self.document.data, index, task_type))


@dataclass(frozen=True)
class Document:
    """The data of a file; where a value stands is looked up only when something is wrong with it."""

    path: Path
    data: Any
    find_root: Callable[[], yaml.Node | None] = lambda: None

    def error(self, problem: str, loc: Loc = (), *, at_key: bool = False) -> WorkflowFileError:
        """An error about the value at ``loc``, or about its key."""
        root = self.find_root()
        return _error(self.path, problem, None if root is None else _locate(root, loc, at_key=at_key))


def load_workflow(path: str | Path) -> Workflow:
    """The workflow that a file describes, new with every call and ready to be started.

    A Python file is run as a module; it defines ``workflow``, a :class:`Workflow` or a function without
    parameters that gives one.  Its folder is added to the end of ``sys.path`` and stays there, so that it can
    import what lies beside it, then and while the workflow runs.  YAML and JSON files have the form of
    :class:`~stabilize_celery.files.forms.WorkflowForm`.

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
    document = _read_json(path, text) if suffix == ".json" else _read_yaml(path, text)
    return WorkflowFile(path, _workflow_of(document), document=document)


def workflow_from_dict(data: Mapping[str, Any], where: str = "workflow") -> Workflow:
    """The workflow that data of the form of a workflow file describes.

    Raises:
        WorkflowFileError: what is wrong with it; ``where`` says what it is.
    """
    return _workflow_of(Document(Path(where), dict(data)))


# ------------------------------------------------------------------------------------------------- places


def _error(path: Path, problem: str, node: Any = None) -> WorkflowFileError:
    """``file:line:column: problem``, the form that editors jump to; ``node`` has a mark or is a line and a column."""
    mark = getattr(node, "start_mark", None)
    at = (mark.line + 1, mark.column + 1) if mark is not None else node
    return WorkflowFileError(f"{path}: {problem}" if at is None else f"{path}:{at[0]}:{at[1]}: {problem}")


def _locate(root: yaml.Node, loc: Loc, *, at_key: bool) -> yaml.Node:
    """The value at ``loc``, or its key; if it is not there, what it would be in."""
    node = found = root
    for step in loc:
        key: yaml.Node | None = None
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        elif isinstance(node, yaml.MappingNode) and (pair := _pair_of(node, str(step))):
            key, node = pair
        else:
            break
        found = key if at_key and key is not None else node
    return found


def _pair_of(node: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    return next(
        (pair for pair in node.value if isinstance(pair[0], yaml.ScalarNode) and pair[0].value == name), None
    )


def _workflow_of(document: Document) -> Workflow:
    """The workflow of a file, checked as every new workflow is.

    Raises:
        WorkflowFileError: it is refused; the place is that of the stage the refusal names.
    """
    form = read_form(document.data, document.error)
    try:
        return to_workflow(form, document.path.stem)
    except InvalidWorkflowError as failure:
        loc, at_key = _place_of_refusal(document, form, failure)
        raise document.error(str(failure), loc, at_key=at_key) from failure


def _place_of_refusal(
    document: Document, form: WorkflowForm, failure: InvalidWorkflowError
) -> tuple[Loc, bool]:
    said = str(failure)
    refs = [stage.ref for stage in form.stages]
    if said.startswith("duplicate_ref:"):
        again = next(index for index, ref in enumerate(refs) if ref in refs[:index])
        return place_in_stage(document.data, again, "ref"), False
    named = failure.stages[0] if isinstance(failure, CircularDependencyError) else None
    for index, ref in enumerate(refs):
        if ref == named or f"stage {ref}:" in said or f"stage {ref} " in said:
            return _place_in_refused_stage(document, form, index, said), False
    if said.startswith(f"workflow {form.name or document.path.stem}: _max_jumps"):
        return ("context", "_max_jumps"), False
    return ("stages",), True


def _place_in_refused_stage(document: Document, form: WorkflowForm, index: int, said: str) -> Loc:
    stage = form.stages[index]
    if said.startswith(("unknown_ref:", "self_edge:")):
        known = {other.ref for other in form.stages if other is not stage}
        wrong = next((n for n, ref in enumerate(stage.requires) if ref not in known), 0)
        return (*place_in_stage(document.data, index, "requires"), wrong)
    for key in stage.output_reducers:
        if f"output_reducers[{key!r}]" in said:
            return (*place_in_stage(document.data, index, "output_reducers"), key)
    if ": stageEnabled" in said:
        return (*place_in_stage(document.data, index, "context"), "stageEnabled", "expression")
    return ("stages", index)


# ------------------------------------------------------------------------------------------- YAML and JSON


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


def _read_yaml(path: Path, text: str) -> Document:
    try:
        _check_depth(path, text)
        loader = _Loader(text)
        root: yaml.Node | None = loader.get_single_node()
        if root is None:
            raise _error(path, "the file is empty")
        _Check(path, loader).value(root)
        return Document(path, loader.construct_document(root), partial(_compose, text))
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        problem = " ".join(part for part in (failure.context, failure.problem) if part)
        raise _error(
            path, f"not YAML: {problem}", (mark.line + 1, mark.column + 1) if mark else None
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as failure:
        raise _error(path, f"not YAML: {failure}") from None


def _compose(text: str) -> yaml.Node | None:
    # Not the nodes that were read: to make a mapping, PyYAML writes into it what it merges.
    node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    return node


def _check_depth(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            depth += 1
            if depth > MAX_DEPTH:
                raise _error(path, f"nested deeper than {MAX_DEPTH} levels", event)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            depth -= 1


class _Check:
    """Refuses nodes that are no JSON, or too many; makes text of dates and base-60 numbers."""

    def __init__(self, path: Path, loader: Any) -> None:
        self._path = path
        self._loader = loader
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def value(self, node: yaml.Node) -> int:
        """Check a node; returns how many values it is, those behind aliases counted each time."""
        if id(node) in self._open:
            raise _error(self._path, "the value contains itself", node)
        if id(node) not in self._sizes:
            self._open.add(id(node))
            self._sizes[id(node)] = 1 + self._inner(node)
            self._open.discard(id(node))
            if self._sizes[id(node)] > MAX_VALUES:
                problem = f"more than {MAX_VALUES:,} values, counted with what aliases repeat"
                raise _error(self._path, problem, node)
        return self._sizes[id(node)]

    def _inner(self, node: yaml.Node) -> int:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.ScalarNode):
            self._scalar(node, kind)
            return 0
        if kind != ("seq" if isinstance(node, yaml.SequenceNode) else "map"):
            raise _error(self._path, f"the tag {node.tag[:80]!r} is not supported", node)
        if isinstance(node, yaml.SequenceNode):
            return sum(self.value(child) for child in node.value)
        seen: set[str] = set()
        for key, value in node.value:
            self._key(key, value)
            if key.value in seen:
                raise _error(self._path, f"the key {key.value[:80]!r} occurs twice", key)
            seen.add(key.value)
        return sum(1 + self.value(value) for _, value in node.value)

    def _key(self, key: yaml.Node, value: yaml.Node) -> None:
        if key.tag.endswith(":merge"):
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(isinstance(source, yaml.MappingNode) for source in sources):
                raise _error(self._path, "'<<' takes a mapping, or a list of mappings", value)
            return
        if isinstance(key, yaml.ScalarNode):
            self._scalar(key, key.tag.removeprefix("tag:yaml.org,2002:"))
        if not key.tag.endswith(":str"):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "..."
            raise _error(self._path, f"keys are text; write {shown[:80]!r} in quotes", key)

    def _scalar(self, node: yaml.ScalarNode, kind: str) -> None:
        if kind in ("timestamp", "value") or (kind in ("int", "float") and ":" in node.value):
            node.tag = "tag:yaml.org,2002:str"
            return
        if kind not in ("str", "null", "bool", "int", "float"):
            raise _error(self._path, f"the tag {node.tag[:80]!r} is not supported", node)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, LookupError, OverflowError) as failure:
            raise _error(self._path, f"not a value of type {kind}: {failure}", node) from None
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _error(self._path, "the number has too many digits; write it in quotes", node)
        if isinstance(value, float) and not math.isfinite(value):
            raise _error(self._path, f"{node.value:.80} cannot be stored as JSON; write null", node)


def _read_json(path: Path, text: str) -> Document:
    def refuse_constant(name: str) -> Any:
        raise _error(path, f"{name} is not JSON; write null")

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            root = _compose_json(text)
            if root is not None:
                _Check(path, _Loader("")).value(root)
            raise _error(path, f"a key occurs twice among {', '.join(sorted(found))[:80]!r}")
        return found

    try:
        data = json.loads(text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant)
    except json.JSONDecodeError as failure:
        raise _error(path, failure.msg, (failure.lineno, failure.colno)) from None
    except RecursionError:
        raise _error(path, "it is nested too deeply") from None
    except ValueError as failure:
        raise _error(path, str(failure)) from None
    return Document(path, data, cache(partial(_compose_json, text)))


def _compose_json(text: str) -> yaml.Node | None:
    """The nodes of a text that is known to be JSON; ``None`` in the rare case that YAML cannot read it.

    Tabs and surrogates, which YAML reads otherwise, are replaced by something as long.
    """
    alike = re.sub(r"\\u[0-9a-fA-F]{4}", r"\\u0020", text.replace("\t", " "))
    try:
        _check_depth(Path(), alike)
        return _compose(alike)
    except (WorkflowFileError, yaml.YAMLError, ValueError, RecursionError):
        return None


# ------------------------------------------------------------------------------------------------- Python


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
        at = (failure.lineno or 1, max(failure.offset or 1, 1))
        return _error(path, f"not Python: {failure.msg}", at)
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename == str(path)]
    place = (frames[-1].lineno or 1, (frames[-1].colno or 0) + 1) if frames else None
    return _error(path, f"{what} {type(failure).__name__}: {failure}", place)
