"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import errno
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ntkmtl._warnings import warn
from ntkmtl.files import atomic_write

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


# Torch has no error of its own for it.
_NO_MEMORY = "DefaultCPUAllocator"


class CheckpointError(ValueError):
    """A checkpoint cannot be used: damaged, or made by something else."""


def previous_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return where the checkpoint before the one at ``path`` is kept.

    Example:
        >>> previous_checkpoint("run/checkpoint.pt").as_posix()
        'run/checkpoint.previous.pt'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove_checkpoints(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint and the one before it, where they are there."""
    for place in (Path(path), previous_checkpoint(path)):
        place.unlink(missing_ok=True)


def write_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Write a checkpoint in one piece.

    Args:
        path: The file.
        state: Tensors, numbers, texts, None, and dicts and lists of them.
        keep_previous: Whether the checkpoint that stood at ``path`` is kept under the name that
            :func:`previous_checkpoint` gives, for the day on which the new one proves damaged.

    Raises:
        OSError: It cannot be written; what stood at ``path`` is still there, under one of the two
            names.
    """
    with atomic_write(path, previous_checkpoint(path) if keep_previous else None) as file:
        torch.save(dict(state), file)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint; no code in it is run.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CheckpointError: It is truncated, has flipped bits, or holds something else.
        OSError: It cannot be opened or read, which says nothing of what it holds.
        MemoryError: There is no room for it.
    """
    path = Path(path)
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
        # A damaged archive asks for a place before the file's beginning.
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
    """Return the last checkpoint that can be used, and warn where it is not the last one.

    Where none can be used though there are some, all are removed.

    Args:
        path: The last one; the one before it is looked for too.
        why_not: From a checkpoint to the reason why it cannot be used, None if it can.

    Raises:
        OSError: One cannot be opened or read; none is removed.
        MemoryError: There is no room for one; none is removed.
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
                    "the last checkpoint cannot be used, so the run goes on from the one before "
                    f"it, {place}. {'; '.join(reasons)}",
                    RuntimeWarning,
                )
                # Else the next write would put it in the place of the good one.
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
