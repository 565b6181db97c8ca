"""How Sphinx builds the site: `make docs`."""

import re

import snaprl

project = "snaprl"
author = "The snaprl authors"
copyright = author
version = release = snaprl.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"snaprl {version}"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"special-members": "__call__"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
# Attributes are told in the class docstring; autodoc must not describe them a second time.
napoleon_use_ivar = True
# `x` in a docstring is code, as it is in Markdown.
default_role = "code"


def escape_plain_text(app, what, name, obj, options, lines):
    """Lets docstrings write |x| and lambda_ as they are: to reStructuredText both mean a link."""
    del app, what, name, obj, options
    for i, line in enumerate(lines):
        if ">>>" not in line:
            parts = re.split(r"(`+[^`]*`+)", line)
            parts[::2] = [re.sub(r"\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
            lines[i] = "".join(parts)


def drop_machinery(app, what, name, obj, skip, options):
    """Leaves out what a NamedTuple or a flax module has from its class alone."""
    del app, what, options
    doc = getattr(obj, "__doc__", None) or ""
    return skip or doc.startswith("Alias for field number") or name in {"name", "parent", "scope"}


def shorten_signature(app, what, name, obj, options, signature, returned):
    """Leaves out `parent` and `name`, which every flax module takes."""
    del app, what, name, obj, options
    if signature:
        signature = re.sub(r", parent=<[^>]*>.*?, name=None", "", signature)
    return signature, returned


def setup(app):
    # Before napoleon, whose own markup must not be escaped.
    app.connect("autodoc-process-docstring", escape_plain_text, priority=400)
    app.connect("autodoc-skip-member", drop_machinery)
    app.connect("autodoc-process-signature", shorten_signature)
