"""Locks: one process at a time in the folder of a run, or of a comparison."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ntkmtl.bench.runs.errors import RunBusyError
from ntkmtl.bench.runs.layout import BEST, FILES, REFERENCES, REQUEST, STUDY

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOCK", "PATIENCE", "RunBusyError", "run_lock", "sweep_lock"]

LOCK = ".ntkmtl.lock"

PATIENCE = 10.0
"""Seconds to wait for the other process: orphaned workers exit after their current step."""


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run's folder; the system releases the lock when the process dies.

    Args:
        folder: The folder, made if there is none. No file is left in it.

    Raises:
        RunBusyError: Another process has held the lock for :data:`PATIENCE` seconds.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with run_lock(folder):
        ...     [path.name for path in folder.iterdir()]
        ['.ntkmtl.lock']
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise RunBusyError(
            f"another process is training in {folder}; wait until it is done, or give another "
            "folder"
        ) from error
    try:
        yield
    finally:
        if os.name == "posix":
            # Removed while it is held: a process that waits for the removed file notices and
            # tries again.
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        if made:
            # A run that could not begin leaves nothing behind.
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def sweep_lock(out: Path) -> Iterator[None]:
    """Lock the folder of a comparison, and remove what killed processes left in it.

    Args:
        out: The folder, made if there is none.

    Raises:
        RunBusyError: Another process holds the lock; it is not waited for.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "runs"
        >>> with sweep_lock(folder), sweep_lock(folder):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
            ...
        ntkmtl.bench.runs.errors.RunBusyError: another process is working in ...
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunBusyError(
            f"another process is working in {out}; wait until it is done, or give another folder"
        ) from error
    try:
        _remove_leftovers(out)
        yield
    finally:
        lock.release()


def _remove_leftovers(out: Path) -> None:
    """Remove files of killed processes, except in runs that another process is training."""
    for path in _leftovers(out):
        lock = FileLock(path.parent / LOCK)
        if path.parent != out:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
        path.unlink(missing_ok=True)
        if lock.is_locked:
            (path.parent / LOCK).unlink(missing_ok=True)
            lock.release()


def _leftovers(out: Path) -> list[Path]:
    """Return temporary files of ours in the folder of a comparison, live ones among them.

    Args:
        out: The folder.
    """
    ours = {*FILES, STUDY, BEST, REQUEST, REFERENCES}
    return [path for path in out.rglob(".*.tmp") if path.name[1:].rsplit(".", 2)[0] in ours]
