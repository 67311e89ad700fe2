"""Lets a link to a folder of measurements download it as one file.

In the repository's web view such a link shows the folder, which a site has no page for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

KEPT = {".json", ".toml", ".csv"}
"""Suffixes of the files that are packed."""

UNFINISHED = "work"
"""Folder of the runs of a study that has not ended, which is left out."""


class LinksToFolders(SphinxTransform):
    """Turns links to folders into links to their archives."""

    default_priority = 1

    def apply(self, **kwargs: Any) -> None:
        """Replace the nodes of one document."""
        root = Path(self.env.srcdir).resolve()
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("reftype") != "myst" or node.get("refdomain"):
                continue
            folder = (root / Path(self.env.docname).parent / node["reftarget"]).resolve()
            if not folder.is_dir() or not folder.is_relative_to(root):
                continue
            name = folder.relative_to(root).as_posix()
            _folders(self.env).setdefault(self.env.docname, set()).add(name)
            up = "../" * self.env.docname.count("/")
            uri = f"{up}{archive_name(name)}"
            node.replace_self(nodes.reference("", "", *node.children, refuri=uri))


def archive_name(folder: str) -> str:
    """Return the place of a folder's archive below the site."""
    return f"archives/{folder.replace('/', '-')}.zip"


def _folders(env: Any) -> dict[str, set[str]]:
    """Return the folders that each document links to."""
    if not hasattr(env, "linked_folders"):
        env.linked_folders = {}
    folders: dict[str, set[str]] = env.linked_folders
    return folders


def write(app: Sphinx, error: Exception | None) -> None:
    """Pack the folders. Names inside begin at the repository's root; equal files, equal bytes."""
    if error is not None or app.builder.format != "html":
        return
    root = Path(app.srcdir)
    for name in sorted(set().union(*_folders(app.env).values())):
        out = Path(app.outdir) / archive_name(name)
        out.parent.mkdir(exist_ok=True)
        files = sorted(
            path
            for path in (root / name).rglob("*")
            if path.suffix in KEPT and UNFINISHED not in path.relative_to(root / name).parts
        )
        if not files:
            raise FileNotFoundError(f"{name} is linked to and has none of {sorted(KEPT)}")
        with ZipFile(out, "w") as archive:
            for path in files:
                entry = ZipInfo(path.relative_to(root).as_posix())
                archive.writestr(entry, path.read_bytes(), ZIP_DEFLATED)


def forget(app: Sphinx, env: Any, docname: str) -> None:
    """Forget what a changed document linked to."""
    _folders(env).pop(docname, None)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform, and pack at the end of a build."""
    app.add_transform(LinksToFolders)
    app.connect("env-purge-doc", forget)
    app.connect("build-finished", write)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
