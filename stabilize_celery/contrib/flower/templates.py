"""Our templates beside Flower's, and our tab in its navigation."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tornado.template import BaseLoader, Template

_TAB = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'workflows' %} active{% end %}"
            href="{{ reverse_url('workflows') }}"
            {% if active_tab == 'workflows' %}aria-current="page"{% end %}>Workflows</a>
        </li>
"""


class FlowerLoader(BaseLoader):
    """Loads a template from the first folder that has it.

    Args:
        folders: ours first, then Flower's.
    """

    def __init__(self, folders: Sequence[Path], **options: Any) -> None:
        super().__init__(**options)
        self._folders = [folder.resolve() for folder in folders]

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        if parent_path and not name.startswith("/"):
            return posixpath.normpath(posixpath.join(posixpath.dirname(parent_path), name))
        return name

    def _create_template(self, name: str) -> Template:
        for folder in self._folders:
            path = folder / name
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                return Template(with_tab(text) if name == "navbar.html" else text, name=name, loader=self)
        raise FileNotFoundError(f"there is no template {name} in {', '.join(map(str, self._folders))}")


def with_tab(navigation: str) -> str:
    """Flower's navigation with our tab at the end of its first list.

    A navigation without a list, of some later Flower, stays as it is: the page is still there under its address.
    """
    before, end, after = navigation.partition("</ul>")
    return before + _TAB + "      " + end + after if end else navigation
