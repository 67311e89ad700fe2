"""Training, validation and test lists of the user, the same for all image and molecule problems."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntkmtl.bench.problems.base import Split
from ntkmtl.files import parse_json, read_bytes

_NAMES: tuple[Split, ...] = ("train", "val", "test")
_FORM = 'JSON {"train": [...], "val": [...], "test": [...]}, or CSV with the columns id and split'


class CustomSplit(NamedTuple):
    """Lists of a file, as rows of the data.

    Attributes:
        rows: Rising rows by split, int64.
        name: Name of the file, without its folder.
        digest: SHA-256 of the rows; equal lists have equal ones, in whatever order they are.
    """

    rows: dict[Split, Tensor]
    name: str
    digest: str

    @property
    def said(self) -> str:
        """The split in a run's identity."""
        return f"custom, SHA-256 {self.digest}"

    def sizes(self, samples: str) -> str:
        """Return a sentence on the lists."""
        train, val, test = (len(self.rows[split]) for split in _NAMES)
        return (
            f"Split by {self.name}: {train:,} {samples} for training, {val:,} for validation, "
            f"{test:,} for testing; numbers are not those of the usual split."
        )


def custom_split(path: object, known: Mapping[str, int], samples: str, example: str) -> CustomSplit:
    """Read the lists of a file.

    Args:
        path: The file. ``.json``: ``{"train": [...], "val": [...], "test": [...]}``, names or
            numbers of samples in each. ``.csv``: a name or number and ``train``, ``val`` or
            ``test`` in each line, after a line with ``id,split``.
        known: Row of each sample by what a list may call it.
        samples: What the samples are called, as ``"images"``.
        example: What names of samples look like, for errors.

    Raises:
        ValueError: The file is of another form, or a list is missing, empty, names a sample that
            is not there, names one twice, or one that another list names too.
        OSError: The file cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "lists.json"
        >>> _ = file.write_text('{"train": ["a", "b"], "val": ["c"], "test": ["d"]}')
        >>> known = {"a": 0, "b": 1, "c": 2, "d": 3}
        >>> custom_split(file, known, "samples", "a").rows["train"].tolist()
        [0, 1]
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ValueError(f"split must be the name of a file, found {path!r}")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"split={path} is not there")
    content = read_bytes(path)
    if path.suffix not in (".json", ".csv"):
        raise ValueError(f"split={path} must end in .json or .csv: {_FORM}")
    try:
        named = _of_json(content) if path.suffix == ".json" else _of_csv(content)
        rows = _rows(named, known, samples, example)
    except ValueError as error:
        raise ValueError(f"split={path}: {error}") from error
    digest = hashlib.sha256()
    for split in _NAMES:
        digest.update(f"{split} {rows[split].tolist()}\n".encode())
    return CustomSplit(rows, path.name, digest.hexdigest())


def _of_json(content: bytes) -> dict[Split, list[str]]:
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"the file must be {_FORM}, found a {type(value).__name__}")
    others = [key for key in value if key not in _NAMES]
    if others:
        raise ValueError(f"the lists are train, val and test, found {others[0]!r}")
    found: dict[Split, list[str]] = {}
    for split in _NAMES:
        listed = value.get(split, [])
        if not isinstance(listed, list):
            raise ValueError(f"{split} must be a list, found a {type(listed).__name__}")
        found[split] = [_name(split, entry) for entry in listed]
    return found


def _name(split: Split, entry: Any) -> str:
    if isinstance(entry, bool) or not isinstance(entry, str | int):
        raise ValueError(f"{split} must hold names or whole numbers, found {entry!r}")
    return str(entry).strip()


def _of_csv(content: bytes) -> dict[Split, list[str]]:
    found: dict[Split, list[str]] = {split: [] for split in _NAMES}
    lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    try:
        for number, cells in enumerate(lines, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != 2:
                raise ValueError(f"line {number} must have two columns, found {len(cells)}")
            name, split = cells[0].strip(), cells[1].strip()
            if split not in found:
                if number == 1 and split == "split":
                    continue
                raise ValueError(
                    f"line {number} must end in train, val or test, found {cells[1]!r}"
                )
            found[split].append(name)
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from error
    return found


def _rows(
    named: Mapping[Split, Iterable[str]], known: Mapping[str, int], samples: str, example: str
) -> dict[Split, Tensor]:
    owner: dict[int, tuple[Split, str]] = {}
    rows: dict[Split, Tensor] = {}
    for split in _NAMES:
        names = list(named[split])
        if not names:
            raise ValueError(f"the list {split} is empty or missing; it must name {samples}")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"{split} names {unknown[0]!r}, which is not among the {samples} that are there "
                f"({len(unknown):,} such names); {example}"
            )
        for name in names:
            row = known[name]
            if row in owner:
                raise ValueError(
                    f"{split} names {name!r}, which {owner[row][0]} names already, as "
                    f"{owner[row][1]!r}: each of the {samples} may be named once only"
                )
            owner[row] = split, name
        rows[split] = torch.tensor(sorted(known[name] for name in names), dtype=torch.int64)
    return rows
