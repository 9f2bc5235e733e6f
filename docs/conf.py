"""How the manual is made: `sphinx-build docs build/docs`, and the man pages by `-b man`."""

from __future__ import annotations

import importlib.util
import os
import re

_HERE = os.path.dirname(os.path.abspath(__file__))
with open(f"{_HERE}/../picoqmail/__init__.py", encoding="utf-8") as _file:
    _found = re.search(r"__version__ = \"([^\"]+)\"", _file.read())

project = "picoqmail"
author = "the authors of picoqmail"
copyright = author  # noqa: A001 - Sphinx's own name
release = version = _found[1] if _found else "unknown"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The reference of the library (api.md) is made from its docstrings, where backticks mean code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = [] if importlib.util.find_spec("django") else ["django"]
napoleon_google_docstring = True
# Types in signatures have no page of their own.
nitpick_ignore_regex = [("py:.*", ".*")]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "picoqmail"
exclude_patterns = ["generate.py"]
nitpicky = True

man_pages = [
    ("commands", "picoqmail", "see and change the mail queue, make and check a home", author, 1),
    ("sendmail", "picoqmail-sendmail", "submit a mail, as sendmail does", author, 1),
    ("inject", "picoqmail-inject", "submit a mail, as qmail-inject does", author, 1),
    ("settings", "picoqmail-settings", "the control files of picoqmail", author, 5),
    ("queue", "picoqmail-queue", "put a message into the spool", author, 8),
    ("send", "picoqmail-send", "bring mail to the relay now", author, 8),
    ("cron", "picoqmail-cron", "retry mail that is due", author, 8),
]
man_show_urls = True
