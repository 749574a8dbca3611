"""The documentation site: `make docs` builds it strictly, every reference checked."""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers.sql import PostgresLexer
from sphinx.application import Sphinx

from stabilize_celery import __version__

sys.path.insert(0, str(Path(__file__).parent))
from fields_table import FieldsTable

project = "stabilize-celery"
author = "The stabilize-celery authors"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinxcontrib.mermaid",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_title = f"stabilize-celery {version}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False


def setup(app: Sphinx) -> None:
    """Our SQL is PostgreSQL's, and options are told by their classes."""
    app.add_lexer("sql", PostgresLexer)
    app.add_directive("fields-table", FieldsTable)
