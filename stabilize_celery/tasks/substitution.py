"""``{key}`` in options: replaced in one pass, so that a value that contains ``{other}`` stays as it is.

Only names of values that exist are replaced.  ``${NAME}`` and ``{{name}}`` are somebody else's syntax, and so
are braces around anything that is no key, such as ``awk '{print $1}'``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

#: ``{{..}}`` is matched to be skipped; ``name`` is what stands between single braces.
PLACEHOLDER = re.compile(r"\{\{[^{}]*\}\}|(?<!\$)\{(?P<name>[^{}]+)\}")


def as_text(value: Any) -> str:
    """How a value is written into text: dicts and lists as JSON, everything else as ``str`` does."""
    return (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else str(value)
    )


def substitute(template: str, data: Mapping[str, Any]) -> str:
    """``template`` with the values of ``data`` put in, unquoted."""

    def replace(match: re.Match[str]) -> str:
        value = data.get(match["name"]) if match["name"] else None
        return match[0] if value is None else as_text(value)

    return PLACEHOLDER.sub(replace, template)
