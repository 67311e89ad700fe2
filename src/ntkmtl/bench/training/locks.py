"""One process at a time in the folder of a run, or in that of several."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ntkmtl.bench.training.runs import remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOCK", "RunBusyError", "alone_among_runs", "alone_in"]

LOCK = ".ntkmtl.lock"

PATIENCE = 10.0
"""Seconds to wait for the other process: workers whose parent was killed end at their next step."""


class RunBusyError(ValueError):
    """Another process works in the folder of a run, or in that of several."""


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the system lets go when this one dies.

    Args:
        folder: The folder, made if there is none. No file is left in it.

    Raises:
        RunBusyError: Another process has been in it for :data:`PATIENCE` seconds.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with alone_in(folder):
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
            # Removed while it is held: who waits for the removed file sees that, and tries again.
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        if made:
            # A run that could not begin leaves nothing behind.
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def alone_among_runs(out: Path) -> Iterator[None]:
    """Keep other processes out of a folder of runs, and clear away what killed ones left.

    Args:
        out: The folder, made if there is none.

    Raises:
        RunBusyError: Another process is in it; it is not waited for.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "runs"
        >>> with alone_among_runs(folder), alone_among_runs(folder):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
            ...
        ntkmtl.bench.training.locks.RunBusyError: another process is working in ...
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
        remove_leftovers(out)
        yield
    finally:
        lock.release()
