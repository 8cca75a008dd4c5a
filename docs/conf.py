"""Sphinx with MyST-NB; `sphinx-build -W docs build/docs` makes the pages."""

import jaxsteer

project = "jaxsteer"
author = "the jaxsteer authors"
release = version = jaxsteer.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run code blocks and notebooks

# Docstrings put code between single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "imported-members": True}
napoleon_use_rtype = False

html_theme = "furo"
html_title = "jaxsteer"
exclude_patterns = ["build"]
suppress_warnings = ["misc.highlighting_failure"]
