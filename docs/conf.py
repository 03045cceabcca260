"""Sphinx renders these pages: ``sphinx-build -W -b html docs build/docs``, from the repository's root.

The reference of modules comes from the docstrings. autosummary makes a page for each module of the
package, so that no list of modules is kept here.
"""

import tomllib
from pathlib import Path

HERE = Path(__file__).parent

project = "DT-UFC"
author = "the DT-UFC contributors"
copyright = author
release = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_parser",  # pages in Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",  # docstrings have Google's sections
    "sphinx.ext.viewcode",
]
exclude_patterns = ["images"]
templates_path = ["_templates"]

myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "ignore-module-all": True,  # what is imported has its entry where it is defined
    "show-inheritance": True,
}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# the newer autodoc formats signatures of imported functions too, and fails on some of SciPy's
autodoc_use_legacy_class_based = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "DT-UFC"


# pages of modules that are gone
for page in (HERE / "modules").glob("*.rst"):
    module = HERE.parent / page.stem.replace(".", "/")
    if not module.is_dir() and not module.with_suffix(".py").is_file():
        page.unlink()


def keep_text(app, what, name, obj, options, lines):
    """Keep from napoleon what it misreads, and show a module's indented blocks as they are."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")  # else the words in front of a colon are taken for a type
    for i in reversed(range(2, len(lines))):
        before = lines[i - 2]
        if what != "module" or lines[i - 1] or not lines[i].startswith("    "):
            continue
        if not before.startswith((" ", "- ", "* ")) and not before.endswith("::"):
            lines[i:i] = ["::", ""]


def setup(app):
    app.connect("autodoc-process-docstring", keep_text, priority=400)  # before napoleon
