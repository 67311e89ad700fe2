"""The trained network of a run: ``model.safetensors``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.runs.layout import MODEL, RunFileError
from ntkmtl.bench.runs.records import KeptModel
from ntkmtl.errors import missing_extra
from ntkmtl.files import atomic_write

try:
    import safetensors
    import safetensors.torch
except ImportError as error:
    raise missing_extra("the trained network of a run", "bench", error) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ntkmtl.bench.runs.run import Run

__all__ = ["model_bytes", "read_model", "write_model"]

_WEIGHTS, _FITTED = "model.", "fitted."
# One key: the order of several is not the same each time.
_VALUES = "ntkmtl"


def write_model(
    path: Path,
    weights: Mapping[str, Tensor],
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> KeptModel:
    """Write a network in one piece.

    Args:
        path: The file.
        weights: The network's ``state_dict``.
        values: What its problem was fitted to, JSON values; see ``Problem.fitted``.
        tensors: The same, tensors.

    Returns:
        Size and digest of the file.

    Raises:
        OSError: It cannot be written.
    """
    named = {_WEIGHTS + name: value for name, value in weights.items()}
    named |= {_FITTED + name: value for name, value in tensors.items()}
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in named.items()}
    said = json.dumps(dict(values), allow_nan=False, sort_keys=True)
    content = safetensors.torch.save(copies, {_VALUES: said})
    with atomic_write(path) as file:
        file.write(content)
    return KeptModel(len(content), hashlib.sha256(content).hexdigest())


def model_bytes(run: Run) -> bytes:
    """Return the file of a run's network, its digest checked.

    Args:
        run: The run.

    Raises:
        RunFileError: The run kept no network, or the file is missing or damaged.
    """
    path, kept = run.path / MODEL, run.result.model
    if kept is None:
        raise RunFileError(
            path,
            "is not there: the run kept no network (--no-model, or an earlier version of ntkmtl). "
            "Train it again into another folder",
        )
    if not path.is_file():
        raise RunFileError(path, "is not there, though result.json names it")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunFileError(path, f"cannot be read ({error.strerror or error})") from error
    if len(content) != kept.bytes:
        raise RunFileError(
            path, f"is damaged: it has {len(content):,} bytes, result.json says {kept.bytes:,}"
        )
    if hashlib.sha256(content).hexdigest() != kept.sha256:
        raise RunFileError(path, "is damaged: its SHA-256 is not the one in result.json")
    return content


def read_model(run: Run) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """Read the network of a complete run.

    Args:
        run: The run.

    Returns:
        ``weights``, ``values`` and ``tensors`` as :func:`write_model` takes them.

    Raises:
        RunFileError: The run kept no network, or the file is missing or damaged.
    """
    path, content = run.path / MODEL, model_bytes(run)
    try:
        found = safetensors.torch.load(content)
        # The header: its length in eight bytes, then JSON.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        values = json.loads(header["__metadata__"][_VALUES])
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunFileError(path, f"is not a network that ntkmtl wrote ({error})") from error
    if not isinstance(values, dict):
        raise RunFileError(
            path, "is not a network that ntkmtl wrote (its values are not an object)"
        )
    parts = {
        prefix: {
            name.removeprefix(prefix): value
            for name, value in found.items()
            if name.startswith(prefix)
        }
        for prefix in (_WEIGHTS, _FITTED)
    }
    return parts[_WEIGHTS], values, parts[_FITTED]
