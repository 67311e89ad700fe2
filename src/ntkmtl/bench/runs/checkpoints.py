"""Checkpoints: everything that a run needs to resume as if it had never stopped."""

from __future__ import annotations

import errno
import pickle
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import torch

from ntkmtl._warnings import warn
from ntkmtl.files import atomic_write, require_regular

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

__all__ = [
    "CheckpointError",
    "previous_checkpoint",
    "read_checkpoint",
    "remove_checkpoints",
    "usable_checkpoint",
    "write_checkpoint",
]


# Torch has no error class for it.
_NO_MEMORY = "DefaultCPUAllocator"


class CheckpointError(ValueError):
    """A checkpoint cannot be used: damaged, or made by something else."""


def previous_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return where the previous checkpoint is kept.

    Example:
        >>> previous_checkpoint("run/checkpoint.pt").as_posix()
        'run/checkpoint.previous.pt'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove_checkpoints(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint and the previous one, if they exist."""
    for place in (Path(path), previous_checkpoint(path)):
        place.unlink(missing_ok=True)


def write_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Write a checkpoint in one piece.

    Args:
        path: The file.
        state: Tensors, numbers, strings, None, and dicts and lists of them.
        keep_previous: Whether the checkpoint that stood at ``path`` is kept under the name that
            :func:`previous_checkpoint` gives, to be used if the new one is corrupt.

    Raises:
        OSError: It cannot be written, as on a full disk; the error names ``path``. What stood there
            is still there, under one of the two names.
    """
    with atomic_write(path, previous_checkpoint(path) if keep_previous else None) as file:
        watched = _Watched(file)
        try:
            torch.save(dict(state), cast("IO[bytes]", watched))
        except RuntimeError as error:
            # Torch closes its archive after a failed write, which fails with an error of its own
            # that hides the first one.
            if watched.error is None:
                raise
            raise watched.error from error


class _Watched:
    """A binary file that remembers the first error of a write.

    Args:
        file: The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            if self.error is None:
                self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint; no code in it is run.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CheckpointError: It is truncated, has flipped bits, or holds something else.
        OSError: It is no regular file, or cannot be opened or read, which says nothing of what it
            holds.
        MemoryError: There is not enough memory for it.
    """
    path = Path(path)
    require_regular(path)
    try:
        # torch.load does not look at the checksums that torch.save wrote.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: {damaged} has a wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        # A damaged archive makes zipfile seek before the file's beginning.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    except (
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, RuntimeError) and _NO_MEMORY in str(error):
            raise MemoryError(f"{path} cannot be read: {error}") from error
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a checkpoint")
    return state


def usable_checkpoint(
    path: str | os.PathLike[str], why_not: Callable[[Mapping[str, Any]], str | None]
) -> dict[str, Any] | None:
    """Return the latest usable checkpoint, and warn if it is not the latest one.

    If there are checkpoints and none is usable, all are removed.

    Args:
        path: The latest one; the previous one is looked for too.
        why_not: From a checkpoint to the reason why it cannot be used, None if it can.

    Raises:
        OSError: One cannot be opened or read; none is removed.
        MemoryError: There is not enough memory for one; none is removed.
    """
    path = Path(path)
    reasons = []
    for place in (path, previous_checkpoint(path)):
        try:
            state = read_checkpoint(place)
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        why = why_not(state)
        if why is None:
            if reasons:
                warn(
                    "the latest checkpoint cannot be used, so the run resumes from the previous "
                    f"one, {place}. {'; '.join(reasons)}",
                    RuntimeWarning,
                )
                # Otherwise the next write would replace the good one by it.
                path.unlink(missing_ok=True)
            return state
        reasons.append(f"{place}: {why}")
    if reasons:
        warn(
            "the checkpoint cannot be used, so the run starts again from its beginning. "
            f"{'; '.join(reasons)}",
            RuntimeWarning,
        )
        remove_checkpoints(path)
    return None
