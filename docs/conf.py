"""The documentation site: `make docs` builds it strictly, every reference checked."""

from __future__ import annotations

from pygments.lexers.sql import PostgresLexer
from sphinx.application import Sphinx

from stabilize_celery import __version__

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
    """Our SQL is PostgreSQL's."""
    app.add_lexer("sql", PostgresLexer)
