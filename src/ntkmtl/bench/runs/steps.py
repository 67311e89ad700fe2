"""Task weights and eigenvalues over training: ``steps.npz``."""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ntkmtl.bench.runs.errors import RunFileError
from ntkmtl.files import atomic_write, require_regular

if TYPE_CHECKING:
    import os
    from pathlib import Path

__all__ = ["Steps", "read_steps", "write_steps"]


@dataclass(frozen=True, eq=False)
class Steps:
    """Task weights and eigenvalues over training: ``steps.npz``.

    Attributes:
        step: Numbers of the recorded steps, int64 of shape (T,).
        weights: The tasks' weights, float32 of shape (T, k).
        eigenvalues: The largest eigenvalue of each task's kernel, float32 of shape (T, k); None for
            methods that have none. NaN at a step at which the kernel was not read.
    """

    step: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    eigenvalues: npt.NDArray[np.float32] | None


# What zipfile and NumPy raise on bytes that are not theirs.
_ARRAY_ERRORS = (
    AttributeError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_steps(path: Path, k: int) -> Steps:
    """Read ``steps.npz``.

    Args:
        path: The file.
        k: Number of tasks.

    Raises:
        RunFileError: It is missing or damaged, or of another number of tasks.
    """
    try:
        require_regular(path)
    except OSError as error:
        raise RunFileError(path, error.strerror or str(error)) from error
    try:
        # Not np.load: it reads the archive's index twice, which adds up over a thousand runs, and
        # it accepts some files that are not archives.
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if not {"step.npy", "weights.npy"} <= names:
                raise RunFileError(path, f"must hold 'step' and 'weights', found {sorted(names)}")
            step, weights = _member(archive, "step.npy"), _member(archive, "weights.npy")
            eigenvalues = None
            if "eigenvalues.npy" in names:
                eigenvalues = _member(archive, "eigenvalues.npy")
    except RunFileError:
        raise
    except _ARRAY_ERRORS as error:
        raise RunFileError(path, f"is not a readable .npz file ({str(error)[:200]})") from error
    if step.ndim != 1 or not np.issubdtype(step.dtype, np.integer):
        raise RunFileError(path, f"'step' must be integers of shape (T,), found {step.shape}")
    for name, array in (("weights", weights), ("eigenvalues", eigenvalues)):
        if array is None:
            continue
        if array.shape != (len(step), k) or not np.issubdtype(array.dtype, np.floating):
            raise RunFileError(
                path,
                f"'{name}' must be floats of shape {(len(step), k)}, "
                f"found {array.dtype} of shape {array.shape}",
            )
    return Steps(
        step=step.astype(np.int64, copy=False),
        weights=weights.astype(np.float32, copy=False),
        eigenvalues=None if eigenvalues is None else eigenvalues.astype(np.float32, copy=False),
    )


def _member(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(name) as file:
        # Read to its end, which is where its checksum is looked at.
        return np.asarray(np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False))


def write_steps(path: str | os.PathLike[str], steps: Steps) -> None:
    """Write ``steps.npz`` in one piece. The same steps give the same bytes."""
    require_regular(path)
    arrays: dict[str, npt.NDArray[Any]] = {"step": steps.step, "weights": steps.weights}
    if steps.eigenvalues is not None:
        arrays["eigenvalues"] = steps.eigenvalues
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
