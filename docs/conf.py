"""Settings of the site, built by ``make site``.

The root of the repository is the source, so that one relative link leads somewhere both on the site
and in the repository's web view. Nothing is fetched, while building or while reading.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs" / "_extensions")]

from public_names import public_names, source_of  # noqa: E402
from sphinx.ext import autosummary  # noqa: E402

from ntkmtl._version import __version__  # noqa: E402

project = "ntkmtl"
author = "The ntkmtl developers"
copyright = author
release = version = __version__

root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "examples/**/README.md", "src/**/data/README.md"]
exclude_patterns = [
    "docs/_*",
    "docs/gallery",
    ".*",
    "build",
    "dist",
    "runs",
    "paper-runs",
    "analysis",
    "src/**/*.py",
    "src/**/__pycache__",
    "tests",
    "benchmarks",
    "scripts",
]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "sphinx_gallery.gen_gallery",
    "math_as_mathml",
    "returns_without_types",
    "source_pages",
    "folder_archives",
    "llms",
]

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 6
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# The page templates hold a list, which Sphinx cannot keep between builds.
suppress_warnings = ["config.cache"]

# Pages of names that are gone would be built all the same.
_wanted = {f"{module}.{name}" for module, names in public_names().items() for name in names}
for _page in (ROOT / "docs" / "api" / "generated").glob("*.rst"):
    if _page.stem not in _wanted | public_names().keys():
        _page.unlink()

# A summary does not end at "Eq.".
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Eq.",)
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autosummary_context = {"public": public_names()}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "docs" / "gallery")],
    "gallery_dirs": [str(ROOT / "docs" / "examples")],
    "filename_pattern": os.sep,
    "plot_gallery": os.environ.get("GALLERY", "1") != "0",
    "abort_on_example_error": True,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 600,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "within_subsection_order": "FileNameSortKey",
    "copyfile_regex": r".*\.(json|csv)",
}


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Return where the page of an object's source lies, from a page of the API."""
    found = source_of(info["module"], info["fullname"])
    return None if found is None else f"../../../source/{found[0]}.html#line-{found[1]}"


templates_path = [str(ROOT / "docs" / "_templates")]
html_theme = "furo"
html_title = "ntkmtl"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_extra"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": False}
