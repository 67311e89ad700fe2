"""Errors about the folders of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = [
    "RunBusyError",
    "RunConflictError",
    "RunFileError",
    "RunFolderLostError",
    "RunInterrupted",
]


class RunFileError(ValueError):
    """A file of a run folder cannot be read: damaged, foreign, or of another version.

    Attributes:
        path: The file.
        why: What is wrong with it.
    """

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        self.path = Path(path)
        self.why = why
        super().__init__(f"{path}: {why}")

    def __reduce__(self) -> tuple[type[RunFileError], tuple[Path, str]]:
        return (type(self), (self.path, self.why))


class RunConflictError(ValueError):
    """The folder of a run holds another run.

    Attributes:
        path: The folder.
        differences: One string per key that differs.
    """

    def __init__(self, path: str | os.PathLike[str], differences: Sequence[str]) -> None:
        self.path = Path(path)
        self.differences = list(differences)
        super().__init__(f"{path} holds another run: {'; '.join(differences)}")

    def __reduce__(self) -> tuple[type[RunConflictError], tuple[Path, list[str]]]:
        return (type(self), (self.path, self.differences))


class RunBusyError(ValueError):
    """Another process works in the folder of a run or of a comparison."""


class RunFolderLostError(OSError):
    """The folder of a run was removed, moved or replaced while the run was being trained.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        super().__init__(
            f"{path} was removed, moved or replaced while the run in it was being trained; "
            "training has stopped, as nothing of it could be kept. Run the same command again to "
            "start over"
        )

    def __reduce__(self) -> tuple[type[RunFolderLostError], tuple[Path]]:
        return (type(self), (self.path,))


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped on request at a step boundary; its checkpoint is written."""
