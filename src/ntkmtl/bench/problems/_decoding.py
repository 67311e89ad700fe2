"""Decoding samples one by one into arrays on disk; a stopped call is continued by the next one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkmtl.bench.problems._arrays import ArrayLayout
from ntkmtl.files import parse_json, read_bytes, write_json

NOTE = "progress.json"
"""Name of the file that says how many samples are decoded."""


def decode_samples(
    folder: Path,
    source: Sequence[Any],
    names: Sequence[str],
    arrays: ArrayLayout,
    read: Callable[[str], Mapping[str, Any]],
    progress: Callable[[str], None],
    samples: str,
    every: int,
) -> None:
    """Fill ``NAME.npy`` of each array in a folder, from where an earlier call stopped.

    Args:
        folder: The folder, which exists.
        source: JSON values that change with what is decoded.
        names: The samples, in the order of the arrays' rows.
        arrays: The arrays, their shapes without the samples.
        read: Returns a sample's part of each array.
        progress: Called with progress messages.
        samples: What the samples are called, as ``"images"``.
        every: Samples between two notes of how far the decoding has come.

    Raises:
        ValueError: The note of an earlier call is damaged.
    """
    note = folder / NOTE
    key = hashlib.sha256(json.dumps([*source, names]).encode()).hexdigest()
    paths = {name: folder / f"{name}.npy" for name in arrays}
    done = _done(note, key, list(paths.values()))
    if done:
        progress(f"continuing after {done:,} {samples}")
    else:
        note.unlink(missing_ok=True)
    opened: dict[str, Any] = {
        name: np.lib.format.open_memmap(paths[name], mode="r+")
        if done
        else np.lib.format.open_memmap(
            paths[name], mode="w+", dtype=dtype, shape=(len(names), *shape)
        )
        for name, (dtype, shape) in arrays.items()
    }
    for row in range(done, len(names)):
        sample = read(names[row])
        for name, array in opened.items():
            array[row] = sample[name]
        if (row + 1) % every == 0 or row + 1 == len(names):
            for name, array in opened.items():
                array.flush()
                with paths[name].open("rb") as file:
                    os.fsync(file.fileno())
            write_json(note, {"key": key, "done": row + 1})
            progress(f"{row + 1:,} of {len(names):,} {samples} decoded")


def _done(note: Path, key: str, paths: Sequence[Path]) -> int:
    """Return how many samples an earlier call has decoded, 0 if it was of others."""
    if not (note.is_file() and all(path.is_file() for path in paths)):
        return 0
    try:
        found = parse_json(read_bytes(note))
        return int(found["done"]) if found["key"] == key else 0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{note} is damaged; remove {note.parent} and call again") from error
