"""How Sphinx makes the site: `python -m sphinx -W docs docs/_build/html`."""

import logging
import pathlib
import sys

import jaxloss

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent / "examples")]

project = "jaxloss"
author = "the authors of jaxloss"
project_copyright = author
release = version = jaxloss.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "myst_parser",
    # This project's own.
    "pages",
    "reference",
]
exclude_patterns = ["_build"]

# The pages of the repository are written for GitHub, whose headings are anchors.
myst_heading_anchors = 3

autosummary_ignore_module_all = False
templates_path = ["templates"]
# The docstrings give shapes and dtypes, which say more.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
# A name in backticks is a link where there is such a name, and code where there is none.
default_role = "py:obj"
toc_object_entries = False

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "jax": ("https://docs.jax.dev/en/latest", None),
    "flax": ("https://flax.readthedocs.io/en/stable", None),
    "optax": ("https://optax.readthedocs.io/en/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
intersphinx_timeout = 10
# Without a network the site is whole but for links to other projects.
logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(
    lambda record: "failed to reach" not in str(record.msg)
)

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "jaxloss"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
