"""How the documentation is built: ``nox -s docs``."""

from __future__ import annotations

import colablock
from colablock.api import check

# A package has the same name; it can be called, and autodoc would describe the package.
vars(colablock)["check"] = check

project = "colablock"
author = "colablock contributors"
copyright = "2026, colablock contributors"  # noqa: A001 - the name that Sphinx reads
release = version = colablock.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_extra_path = ["../matrices/matrix-1.schema.json"]  # published at the top, for `#:schema` lines
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["doors.css"]
html_title = f"colablock {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
