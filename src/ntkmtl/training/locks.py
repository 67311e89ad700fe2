"""One process at a time in the folder of a run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOCK", "RunBusyError", "alone_in"]

LOCK = ".ntkmtl.lock"

PATIENCE = 10.0
"""Seconds to wait for the other process: workers whose parent was killed end at their next step."""


class RunBusyError(ValueError):
    """Another process is training in the folder of a run."""


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
