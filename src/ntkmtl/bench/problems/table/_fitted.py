"""What a trained network needs to read new rows: no training data, and JSON values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ntkmtl.bench.problems.table._batch import NewRows, RowBatch
from ntkmtl.bench.problems.table._columns import Feature
from ntkmtl.bench.problems.table._encode import FeatureEncoder
from ntkmtl.bench.problems.table._raw import RawColumn, RawTable, TableError, number_text, shorten
from ntkmtl.bench.problems.table._read import read_any


@dataclass(frozen=True)
class FittedTarget:
    """A target as it was trained on.

    Attributes:
        name: Name of the column and of the task.
        classes: Names of the classes, empty for regression.
        center: Mean over the training rows, 0 for classification.
        scale: Standard deviation over the training rows, 1 for classification.
        unit: Unit of the error, where one is known.
        judged: Classes that have a test row; all for regression.
    """

    name: str
    classes: tuple[str, ...] = ()
    center: float = 0.0
    scale: float = 1.0
    unit: str = ""
    judged: int = 0

    @property
    def size(self) -> int:
        """Number of outputs of its head."""
        return len(self.classes) or 1


@dataclass(frozen=True)
class FittedTable:
    """How rows become inputs of the network, and its outputs predictions.

    Attributes:
        encoders: One per column that the network sees.
        targets: What it predicts.
        ids: Names of the columns that go through to predictions.
        others: Names of the columns of the training file that are not used otherwise.
        reading: ``encoding``, ``separator`` and ``header`` of a CSV file.
    """

    encoders: tuple[FeatureEncoder, ...]
    targets: tuple[FittedTarget, ...]
    ids: tuple[str, ...]
    others: tuple[str, ...]
    reading: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the network's inputs."""
        return tuple(name for encoder in self.encoders for name in encoder.names)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "encoders": [encoder.to_json() for encoder in self.encoders],
            "targets": [{**vars(each), "classes": list(each.classes)} for each in self.targets],
            "ids": list(self.ids),
            "others": list(self.others),
            "reading": dict(self.reading),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FittedTable:
        """Recreate the table from :meth:`to_json`.

        Raises:
            TableError: It is something else.
        """
        try:
            return cls(
                tuple(FeatureEncoder.from_json(each) for each in content["encoders"]),
                tuple(
                    FittedTarget(**{**each, "classes": tuple(each["classes"])})
                    for each in content["targets"]
                ),
                tuple(content["ids"]),
                tuple(content["others"]),
                dict(content["reading"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise TableError(f"the saved encoders are damaged: {error!r}") from error

    # ------------------------------------------------------------------ new rows

    def encode(self, source: Any) -> NewRows:
        """Read and encode the rows of a file or a pandas data frame.

        Args:
            source: A CSV, Parquet or ARFF file, or a data frame. Targets may be missing.

        Raises:
            TableError: It cannot be read, or has none of the columns that the network sees.
        """
        raw = read_any(source, **self.reading)
        ids = {name: _as_strings(raw.columns[name]) for name in self.ids if name in raw.columns}
        warnings = list(self._about_columns(raw))
        parts = []
        for encoder in self.encoders:
            feature, told = _feature(raw, encoder)
            warnings += told
            parts.append(encoder.encode(feature))
        inputs = np.concatenate(parts, axis=1)
        return NewRows(RowBatch(torch.from_numpy(inputs), ()), ids, warnings)

    def _about_columns(self, raw: RawTable) -> list[str]:
        needed = [encoder.name for encoder in self.encoders]
        absent = [name for name in needed if name not in raw.columns]
        if len(absent) == len(needed):
            raise TableError(
                f"{raw.path} has none of the columns that the network was trained on: "
                f"{shorten(', '.join(needed), 200)[1:-1]}. It has "
                f"{shorten(', '.join(raw.columns), 200)[1:-1]}."
            )
        known = {*needed, *self.ids, *self.others, *(target.name for target in self.targets)}
        extra = [name for name in raw.columns if name not in known]
        lost = [name for name in self.ids if name not in raw.columns]
        told = (
            (absent, f"not in {raw.path}; taken as missing in every row."),
            (lost, f"not in {raw.path}, so rows have no such id."),
            (extra, "not known from training, and not used."),
        )
        return [f"{_names(names)} {what}" for names, what in told if names]


def _names(names: list[str]) -> str:
    listed = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"Column {listed} is" if len(names) == 1 else f"Columns {listed} are"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _as_strings(column: RawColumn) -> list[str]:
    if column.numbers is None:
        return [str(text) for text in column.texts.fillna("")]
    return ["" if np.isnan(v) else number_text(v) for v in column.numbers]


def _feature(raw: RawTable, encoder: FeatureEncoder) -> tuple[Feature, list[str]]:
    """Return a column as the encoder takes it, and sentences on what training rows did not have."""
    column, name = raw.columns.get(encoder.name), encoder.name
    levels_wanted = encoder.kind in ("category", "text")
    if column is None:
        if levels_wanted:
            return Feature(name, encoder.kind, codes=np.full(raw.rows, -1), levels=()), []
        return Feature(name, encoder.kind, numbers=np.full(raw.rows, np.nan)), []
    told = []
    if levels_wanted:
        codes, levels = _levels(column, encoder)
        feature = Feature(name, encoder.kind, encoder.form, codes=codes, levels=tuple(levels))
        missing = codes < 0
        if unseen := encoder.unseen(feature):
            rows = int(np.isin(codes, [levels.index(level) for level in unseen]).sum())
            listed = ", ".join(shorten(level, 30) for level in unseen[:5])
            told.append(
                f"Column {name!r} has {len(unseen)} {'level' if len(unseen) == 1 else 'levels'} "
                f"that no training row had ({listed}{', ...' if len(unseen) > 5 else ''}), in "
                f"{_rows(rows)}."
            )
    else:
        values, missing, bad = encoder.form.read(column)
        feature = Feature(name, encoder.kind, encoder.form, numbers=np.where(bad, np.nan, values))
        if bad.any():
            row = int(bad.argmax())
            shown = column.texts.iloc[row] if column.numbers is None else column.numbers[row]
            wanted = encoder.form.words() or f"a {encoder.form.kind}"
            told.append(
                f"Column {name!r}: {int(bad.sum()):,} values are not as in training ({wanted}) and "
                f"count as missing, the first in row {row + 1}: {shorten(str(shown), 40)}."
            )
    if missing.any() and f"{name} missing" not in encoder.names:
        told.append(
            f"Column {name!r} is empty in {_rows(int(missing.sum()))}; no training row was."
        )
    return feature, told


def _levels(column: RawColumn, encoder: FeatureEncoder) -> tuple[np.ndarray, list[str]]:
    codes, levels, _ = encoder.form.levels(column)
    if encoder.form.kind != "number" or column.numbers is not None:
        return codes, levels
    # 1 and 1.0 are one level of a category of numbers; what is no number is a new level.
    numbers = encoder.form.numbers(levels) if levels else np.zeros(0)
    names = [
        level if np.isnan(number) else number_text(number)
        for level, number in zip(levels, numbers, strict=True)
    ]
    unique = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(unique)}
    to = np.array([*(place[name] for name in names), -1])
    return to[codes], unique
