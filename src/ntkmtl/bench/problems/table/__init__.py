"""``table``: any table of a user, in CSV, Parquet or ARFF.

Columns are typed and shown, a perceptron with one head per target is trained, missing inputs and
missing labels are dealt with.
"""

from __future__ import annotations

from ntkmtl.bench.problems.table._fitted import NewRows
from ntkmtl.bench.problems.table._model import RowBatch
from ntkmtl.bench.problems.table._problem import Table
from ntkmtl.bench.problems.table._raw import TableError

__all__ = ["NewRows", "RowBatch", "Table", "TableError"]
