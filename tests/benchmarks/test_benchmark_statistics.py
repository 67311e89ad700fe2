"""Delta-m seed by seed, and the differences to the controls."""

from __future__ import annotations

from pathlib import Path

import kernel_statistics
import pytest

from ntkmtl.bench.report import build_table
from ntkmtl.bench.training import Comparison, compare, load_runs


def test_the_mean_over_seeds_is_the_table_s(tmp_path: Path) -> None:
    comparison = Comparison(
        problem="qm9-mini", methods=["ls"], seeds=[0, 1], out=tmp_path, jobs=1, epochs=1
    )
    assert not compare(comparison).failures
    found = kernel_statistics.by_seed(load_runs(tmp_path)[0], "ls")
    assert sorted(found) == [0, 1]
    mean, error = kernel_statistics.mean_and_error(list(found.values()))
    told = build_table(tmp_path).row("ls").delta_m
    assert told is not None
    assert (mean, error) == pytest.approx((told.mean, told.stderr))


def test_differences_are_taken_seed_by_seed() -> None:
    rows = [
        {"label": "ntkmtl", "delta_m": 2.0, "standard_error": 1.0, "by_seed": [1.0, 3.0]},
        {"label": "other", "delta_m": 1.0, "standard_error": 0.0, "by_seed": [1.0, 1.0]},
    ]
    # Differences 0 and -2: mean -1, standard deviation sqrt(2), over sqrt(2).
    assert kernel_statistics.less(rows[1], rows[0]) == pytest.approx((-1.0, 1.0))
    assert kernel_statistics.markdown(rows).splitlines()[2:] == [
        "| other | 1.00 | 0.00 | -1.00 ± 1.00 |",
        "| ntkmtl | 2.00 | 1.00 |  |",
    ]
