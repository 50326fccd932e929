"""The documentation: Sphinx, MyST, furo."""

import chronograd

project = "chronograd"
author = "The chronograd developers"
project_copyright = "The chronograd developers"
version = release = chronograd.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"chronograd {version}"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
