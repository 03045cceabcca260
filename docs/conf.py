"""Sphinx renders these pages: ``sphinx-build -W -b html docs build/docs``, from the repository's root.

The reference of modules comes from the docstrings. autosummary makes a page for each module of the
package, so that no list of modules is kept here. What is measured comes from the folder ``results``.
"""

import shutil
import tomllib
from pathlib import Path

from sphinx.ext.napoleon import Config, GoogleDocstring

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "DT-UFC"
author = "the DT-UFC contributors"
copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_parser",  # pages in Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["images"]
templates_path = ["_templates"]
# an annotation such as range is looked for among attributes of that name too
suppress_warnings = ["ref.python"]

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

html_theme = "furo"
html_title = "DT-UFC"

# pages of modules that are gone
for page in (HERE / "modules").glob("*.rst"):
    module = ROOT / page.stem.replace(".", "/")
    if not module.is_dir() and not module.with_suffix(".py").is_file():
        page.unlink()
# Sphinx takes pages from below this folder only
shutil.rmtree(HERE / "results", ignore_errors=True)
shutil.copytree(ROOT / "results", HERE / "results")


def move_links(app, docname, source):
    """Links between pages and ``results``, which lies elsewhere in the repository."""
    source[0] = (
        source[0].replace("](../../results/", "](../results/").replace("](../docs/", "](../")
    )


def read_docstring(app, what, name, obj, options, lines):
    """Read Google's sections; show a module's indented blocks, which ``--help`` prints, as they are."""
    for i in reversed(range(2, len(lines))):
        before = lines[i - 2]
        if what != "module" or lines[i - 1] or not lines[i].startswith("    "):
            continue
        if not before.startswith((" ", "- ", "* ")) and not before.endswith("::"):
            lines[i:i] = ["::", ""]
    # of an attribute, napoleon takes the words in front of a colon for a type
    what = "method" if what in ("attribute", "data", "property") else what
    google = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)
    lines[:] = GoogleDocstring(lines, google, app, what, name, obj, options).lines()


def setup(app):
    app.connect("source-read", move_links)
    app.connect("autodoc-process-docstring", read_docstring)
