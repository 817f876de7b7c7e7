"""How Sphinx builds the site from the pages that generate.py lays out: `make docs`."""

import importlib.util
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import thalweg

project = "thalweg"
author = "the thalweg authors"
project_copyright = "the thalweg authors, MIT"
version = release = thalweg.version
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_design", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# What the adapters are for need not be there to document them.
autodoc_mock_imports = [name for name in ("torch", "jax", "transformers") if importlib.util.find_spec(name) is None]
suppress_warnings = ["ref.python"]  # "Optimizer" in a signature: that of the same module
smartquotes = False
html_theme = "furo"
html_title = f"thalweg {thalweg.version}"
html_static_path = [str(HERE / "static")]
html_css_files = ["thalweg.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
                      "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"}}
copybutton_prompt_text = "$ "


def blocks(_app, _what, _name, _obj, _options, lines):  # noqa: ANN001, ANN201 (as Sphinx calls it)
    """The docstrings are text for `help()`: indented parts are shown as they stand, and no sign in them is markup."""
    made, plain = [], True
    for line in lines:
        indented = line.startswith("    ") or (line.strip() and not plain and line.startswith("  "))
        aligned = re.search(r"[^\s.:;!?]\s\s+\S", line) is not None  # a table; two blanks behind a full stop are none
        block = indented or aligned
        if block and plain:
            made += ["", "::", ""]
            plain = False
        elif line.strip() and not block and not plain:
            made.append("")
            plain = True
        made.append(f"    {line}" if not plain and line.strip() else line if not plain else _escaped(line))
    lines[:] = made


def _escaped(line):  # noqa: ANN001, ANN202
    return line.replace("\\", "\\\\").replace("*", "\\*").replace("|", "\\|").replace("`", "\\`").replace("_", "\\_")


def setup(app):  # noqa: ANN001, ANN201
    app.connect("autodoc-process-docstring", blocks)
