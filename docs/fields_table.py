"""The directive ``fields-table``: every field of a pydantic model with its default and meaning, from the class itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

#: Longer defaults say less than the meaning does.
_LONGEST_DEFAULT = 40


class FieldsTable(SphinxDirective):
    """A table with a row for each field of the model that is the argument; ``prefix`` comes before their names."""

    required_arguments = 1
    option_spec = {"prefix": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        model = getattr(import_module(module), name)
        prefix = self.options.get("prefix", "")
        meanings = dict(_meanings(model))
        rows = [
            f"| `{prefix}{field.alias or name}` | {_default(field)} | {meanings.get(name, '')} |"
            for name, field in model.model_fields.items()
        ]
        text = "\n".join(["| Name | Default | Meaning |", "|---|---|---|", *rows])
        return self.parse_text_to_nodes(text)


def _meanings(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """What is said of each field: in a comment ``#:`` above it, or in its description."""
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            comments: Any = ModuleAnalyzer.for_module(each.__module__).find_attr_docs()
            for (owner, name), lines in comments.items():
                if owner == each.__name__:
                    yield name, " ".join(lines).strip().replace("``", "`").replace("|", "\\|")
    for name, field in model.model_fields.items():
        if field.description:
            yield name, " ".join(field.description.split()).replace("``", "`").replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    if value in (None, "", {}, []):
        return ""
    return f"`{value}`" if len(str(value)) <= _LONGEST_DEFAULT else "(some)"
