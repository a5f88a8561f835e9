"""The documentation site: `make docs` builds it from these pages and the docstrings; a broken link is an error."""

from __future__ import annotations

import sys
from pathlib import Path

import cowest

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "cowest"
author = "the cowest developers"
copyright = "2026, the cowest developers"
version = release = cowest.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "reference"]
exclude_patterns = ["_build", "lab-pretraining/*"]
nitpicky = False  # names in signatures belong to a dozen other libraries, whose inventories no build here may fetch

myst_heading_anchors = 4  # pages link to each other's headings as a git host does
suppress_warnings = [
    "myst.header",
    "toc.not_included",
]  # tables that a command wrote, linked from the page that tells of them

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
]  # the site is built without them
python_use_unqualified_type_names = True
python_display_short_literal_types = True

html_theme = "furo"
html_title = f"cowest {release}"
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
