"""Refusing outputs that would be written over what runs and data are kept in, or over inputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ntkmtl.bench.cli.console import refuse, refusing
from ntkmtl.files import numbers_beside

PAGE_BEGINS = b"<!doctype html"
"""First bytes of a page."""


def check_output(path: Path | None, begins: bytes = b"") -> None:
    """Refuse a picture or page with the file name that its numbers get, or over what is kept."""
    if path is not None:
        with refusing(ValueError):
            check_kept(numbers_beside(path))
        check_kept(path, begins)


def check_kept(path: Path, begins: bytes = b"") -> None:
    """Refuse to write where runs and data keep their files, or over a file of another kind.

    Args:
        path: What a command writes.
        begins: First bytes of what it writes, in small letters.
    """
    from ntkmtl.bench.problems._arrays import MANIFEST, NOTE
    from ntkmtl.bench.runs import layout
    from ntkmtl.bench.study.plan import PLAN

    kept = {layout.STUDY, layout.BEST, layout.REQUEST, layout.REFERENCES, PLAN, MANIFEST, NOTE}
    if path.name in kept.union(layout.FILES):
        refuse(f"{path} would have the name of a file that runs are kept in: give another name")
    with refusing():
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                found = file.read(64).lstrip().lower()
            if not found.startswith(begins):
                refuse(f"{path} holds something else, which would be lost: give another name")


def refuse_loss(path: Path, read: Iterable[Any]) -> None:
    """Refuse to write over a file that is read, or into a folder of data.

    Args:
        path: What a command writes.
        read: Paths, and other values, as options of a problem have them.
    """
    for value in read:
        source = Path(value).expanduser() if isinstance(value, str | Path) else None
        if source is None or not _is_there(source):
            continue
        inside = source.is_dir() and path.exists() and source.resolve() in path.resolve().parents
        if inside or _same_file(path, source):
            refuse(f"{path} is read here ({source}), and would be lost: give another name")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file
        return False


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False
