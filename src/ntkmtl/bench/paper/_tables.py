"""The published tables: numbers from the CSV files in ``data``, and what their columns mean."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Literal

Kind = Literal["metric", "mr", "delta_m"]

_LABELS = ("method", "variant", "printed")


@dataclass(frozen=True)
class PaperColumn:
    """One column of numbers.

    Attributes:
        name: Key of the column in :attr:`Row.cells`.
        label: Head of the column as shown to people.
        kind: ``"metric"`` for what is measured; ``"mr"`` (mean rank) and ``"delta_m"`` (Δm%) for
            what the paper works out from metrics.
        higher_is_better: Direction.
        unit: Unit of the numbers, ``""`` for none or not known.
        task: Task or data set that the column is about, ``""`` where the table has one only.
    """

    name: str
    label: str
    kind: Kind = "metric"
    higher_is_better: bool = False
    unit: str = ""
    task: str = ""

    @property
    def head(self) -> str:
        """Label with an arrow in the better direction.

        Example:
            >>> PaperColumn("miou", "mIoU", higher_is_better=True).head
            'mIoU ↑'
        """
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True)
class Cell:
    """One printed number.

    Attributes:
        text: The number as printed; trailing zeros show its precision.
        stderr_text: Its standard error as printed, ``""`` if there is none.
    """

    text: str
    stderr_text: str = ""

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text)

    @property
    def stderr(self) -> float | None:
        """Its standard error, None if the paper prints none."""
        return float(self.stderr_text) if self.stderr_text else None

    @property
    def half_unit(self) -> float:
        """Half a unit of the last printed digit: how far rounding can have moved the number.

        Example:
            >>> Cell("0.0125").half_unit
            5e-05
            >>> Cell("66.2").half_unit
            0.05
        """
        decimals = len(self.text.partition(".")[2])
        return float(f"5e-{decimals + 1}")

    def __str__(self) -> str:
        return f"{self.text} ± {self.stderr_text}" if self.stderr_text else self.text


@dataclass(frozen=True)
class Row:
    """One method's numbers.

    Attributes:
        method: Name of the method as in :func:`ntkmtl.weighting.names`, or a name in the same
            style where the library has no such method.
        printed: Name as printed, with the paper's reference.
        cells: Printed numbers by column name; a column that is empty in this row is absent.
        variant: ``"original"`` or ``"reproduced"`` in Table 6, ``""`` elsewhere.
    """

    method: str
    printed: str
    cells: Mapping[str, Cell] = field(hash=False)
    variant: str = ""

    def value(self, column: str) -> float | None:
        """Return the number in a column, None if the paper prints none there.

        Args:
            column: Name of the column; None is returned for an unknown one as well.
        """
        cell = self.cells.get(column)
        return None if cell is None else cell.value

    def stderr(self, column: str) -> float | None:
        """Return the standard error in a column, None if the paper prints none there.

        Args:
            column: Name of the column; None is returned for an unknown one as well.
        """
        cell = self.cells.get(column)
        return None if cell is None else cell.stderr

    @property
    def mr(self) -> float | None:
        """Published mean rank, None if the table has no column of that name or no number in it."""
        return self.value("mr")

    @property
    def delta_m(self) -> float | None:
        """Published Δm%, None if the table has no column of that name or no number in it."""
        return self.value("delta_m")


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: Its number in the paper.
        title: What it shows.
        columns: Its columns in the paper's order: metrics first, then what follows from them.
        rows: Its rows in the paper's order.
        notes: What a reader of the numbers has to know.
    """

    number: int
    title: str
    columns: tuple[PaperColumn, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[PaperColumn, ...]:
        """The columns that are measured, not worked out from others."""
        return tuple(column for column in self.columns if column.kind == "metric")

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, each once, in the table's order."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def column(self, name: str) -> PaperColumn:
        """Return a column by name.

        Args:
            name: Name of the column, such as ``"miou"``.

        Raises:
            KeyError: If there is no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        names = ", ".join(column.name for column in self.columns)
        raise KeyError(f"Table {self.number} has no column {name!r}; choose one of {names}")

    def row(self, method: str, variant: str | None = None) -> Row:
        """Return a method's row.

        Args:
            method: Name of the method as in our registry.
            variant: Which of its rows, where it has several (Table 6).

        Raises:
            KeyError: If there is no such row, or there are several and ``variant`` is not given.

        Example:
            >>> table(6).row("si", "original").delta_m, table(6).row("si", "reproduced").delta_m
            (77.8, 39.7)
        """
        found = [row for row in self.rows if row.method == method]
        if not found:
            raise KeyError(
                f"Table {self.number} has no method {method!r}; "
                f"choose one of {', '.join(self.methods)}"
            )
        chosen = [row for row in found if variant in (None, row.variant)]
        if len(chosen) != 1:
            variants = ", ".join(repr(row.variant) for row in found)
            raise KeyError(
                f"Table {self.number} has {len(chosen)} rows of {method!r} with variant "
                f"{variant!r}; choose one of the variants {variants}"
            )
        return chosen[0]

    def values(self, row: Row) -> tuple[float, ...]:
        """Return a row's metrics, in the order of :attr:`metrics`.

        Args:
            row: One of :attr:`rows`.

        Raises:
            KeyError: The paper prints no number for one of the metrics.
        """
        return tuple(row.cells[column.name].value for column in self.metrics)


def table(number: int) -> PaperTable:
    """Return a table of the paper by its number there.

    Args:
        number: The number.

    Raises:
        KeyError: If the table is not among those that are kept as data.

    Example:
        >>> qm9 = table(3)
        >>> qm9.row("ntkmtl-sr").delta_m
        30.7
        >>> [column.name for column in qm9.metrics][:4]
        ['mu', 'alpha', 'homo', 'lumo']
    """
    if number not in _HEADS:
        numbers = ", ".join(map(str, _HEADS))
        raise KeyError(f"no Table {number!r} of the paper is kept; choose one of {numbers}")
    return _load(number)


def tables() -> tuple[PaperTable, ...]:
    """Return all tables that are kept, in the paper's order.

    Example:
        >>> [table.number for table in tables()]
        [1, 2, 3, 4, 6, 7, 8, 9]
    """
    return tuple(_load(number) for number in _HEADS)


@cache
def _load(number: int) -> PaperTable:
    title, columns, notes = _HEADS[number]
    text = (resources.files(__package__) / "data" / f"table{number}.csv").read_text("utf-8")
    return PaperTable(
        number=number,
        title=title,
        columns=columns,
        rows=tuple(
            Row(
                method=line["method"],
                printed=line["printed"],
                variant=line.get("variant", ""),
                cells=MappingProxyType(
                    {
                        name: _cell(entry)
                        for name, entry in line.items()
                        if name not in _LABELS and entry
                    }
                ),
            )
            for line in csv.DictReader(text.splitlines())
        ),
        notes=notes,
    )


def _cell(entry: str) -> Cell:
    text, _, stderr_text = entry.partition(" ± ")
    return Cell(text, stderr_text)


_SEGMENTATION_AND_DEPTH = (
    PaperColumn("miou", "mIoU", higher_is_better=True, unit="%", task="segmentation"),
    PaperColumn("pixel_accuracy", "Pix Acc", higher_is_better=True, unit="%", task="segmentation"),
    PaperColumn("abs_error", "Abs Err", task="depth"),
    PaperColumn("rel_error", "Rel Err", task="depth"),
)
_NYUV2 = (
    *_SEGMENTATION_AND_DEPTH,
    PaperColumn("normal_mean", "Mean", unit="°", task="surface normal"),
    PaperColumn("normal_median", "Median", unit="°", task="surface normal"),
    PaperColumn("within_11_25", "11.25", higher_is_better=True, unit="%", task="surface normal"),
    PaperColumn("within_22_5", "22.5", higher_is_better=True, unit="%", task="surface normal"),
    PaperColumn("within_30", "30", higher_is_better=True, unit="%", task="surface normal"),
)
_QM9 = (
    PaperColumn("mu", "μ", unit="D"),
    PaperColumn("alpha", "α", unit="a₀³"),
    PaperColumn("homo", "ε_HOMO", unit="meV"),
    PaperColumn("lumo", "ε_LUMO", unit="meV"),
    PaperColumn("r2", "⟨R²⟩", unit="a₀²"),
    PaperColumn("zpve", "ZPVE", unit="meV"),
    PaperColumn("u0", "U₀", unit="meV"),
    PaperColumn("u", "U", unit="meV"),
    PaperColumn("h", "H", unit="meV"),
    PaperColumn("g", "G", unit="meV"),
    PaperColumn("cv", "c_v", unit="cal/(mol K)"),
)
_MR = PaperColumn("mr", "MR", "mr")
_DELTA_M = PaperColumn("delta_m", "Δm%", "delta_m", unit="%")
_CITYSCAPES_MR = PaperColumn("cityscapes_mr", "CityScapes MR", "mr", task="CityScapes")
_CITYSCAPES_DELTA_M = PaperColumn(
    "cityscapes_delta_m", "CityScapes Δm%", "delta_m", unit="%", task="CityScapes"
)
_CELEBA_MR = PaperColumn("celeba_mr", "CelebA MR", "mr", task="CelebA")
_CELEBA_DELTA_M = PaperColumn("celeba_delta_m", "CelebA Δm%", "delta_m", unit="%", task="CelebA")

_THREE_SEEDS = "Means over 3 seeds."
_RANKED = (
    "MR ranks all methods but STL. Equal values get the best of their ranks where lower is better "
    "and the worst where higher is better."
)
_QM9_UNITS = (
    "Mean absolute errors. The paper prints no units; these are those of the QM9 code of earlier "
    "methods that its appendix says it builds on (energies in meV, atomization energies for U₀, "
    "U, H and G)."
)

_HEADS: Mapping[int, tuple[str, tuple[PaperColumn, ...], tuple[str, ...]]] = {
    1: (
        "NYUv2, 3 tasks",
        (*_NYUV2, _MR, _DELTA_M),
        (
            _THREE_SEEDS,
            _RANKED,
            "The copy of the paper that these numbers were taken from has one number after the "
            "nine metrics, under the heads MR and Δm%. It is MR: 4.33 for NTKMTL is the mean rank "
            "that Section 4.2 names, and the ranks of the metrics give it. Δm% is kept for the two "
            "methods whose value Table 9 prints.",
            "MR of SI and DWA is not what the printed metrics give. It is if SI ranks one place "
            "ahead of DWA, not behind it, in one of Median (23.37, 23.18) and 30 (62.32, 62.39).",
        ),
    ),
    2: (
        "CityScapes, 2 tasks, and CelebA, 40 tasks",
        (_CITYSCAPES_MR, _CITYSCAPES_DELTA_M, _CELEBA_MR, _CELEBA_DELTA_M),
        (
            _THREE_SEEDS,
            "MR of CityScapes ranks the methods of this table by the metrics of Table 7, so it "
            "differs from Table 7's MR. Equal values are ranked as there.",
            "The paper has no metrics per CelebA task, so nothing here can be worked out again.",
        ),
    ),
    3: (
        "QM9, 11 tasks, all methods trained again by the paper's authors",
        (*_QM9, _MR, _DELTA_M),
        (_QM9_UNITS, _RANKED),
    ),
    4: (
        "Meta-World MT10, 10 tasks",
        (PaperColumn("success_rate", "Success rate", higher_is_better=True),),
        ("Mean and standard error over 10 seeds.",),
    ),
    6: (
        "QM9, 11 tasks, as in the methods' own papers and trained again",
        (*_QM9, _MR, _DELTA_M),
        (
            "Two rows per method: 'original' as in the method's own paper, 'reproduced' under the "
            "paper's settings (batch size 60 for 120, patience 10 for 5). The reproduced rows are "
            "those of Table 3.",
            _QM9_UNITS,
            _RANKED + " Only reproduced rows are ranked. Δm% takes STL of the same kind of row.",
        ),
    ),
    7: ("CityScapes, 2 tasks", (*_SEGMENTATION_AND_DEPTH, _MR, _DELTA_M), (_THREE_SEEDS, _RANKED)),
    8: (
        "CityScapes and CelebA with standard errors",
        (*_SEGMENTATION_AND_DEPTH, _CITYSCAPES_DELTA_M, _CELEBA_DELTA_M),
        ("Mean and standard error over 3 seeds. STL is in Table 7.",),
    ),
    9: (
        "NYUv2 with standard errors",
        (*_NYUV2, _DELTA_M),
        ("Mean and standard error over 3 seeds. STL is in Table 1.",),
    ),
}
