"""Rows of mean, ridge and forest, what sharing did, and two tables in one folder."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from ntkmtl.bench.problems.table import Table
from ntkmtl.bench.report import build_table, build_tables, render, write_html
from ntkmtl.bench.report._table import MethodRow, MetricColumn, ResultTable, SeedMean, sharing_note
from ntkmtl.bench.training import Comparison, compare


def written(folder: Path, name: str, seed: int) -> Path:
    random = np.random.default_rng(seed)
    x = random.normal(size=(80, 2))
    rows = [f"{a:.4f},{b:.4f},{2 * a - b:.4f},{'hi' if a > 0.2 * b else 'lo'}" for a, b in x]
    path = folder / name
    path.write_text("\n".join(["a,b,y,c", *rows]) + "\n")
    return path


def compared(path: Path, out: Path, **more: object) -> None:
    compare(
        Comparison(
            problem="table",
            methods=["ls", "imtl-g"],
            seeds=[0],
            out=out,
            problem_options={"csv": str(path), "targets": "y,c"},
            epochs=2,
            single_task_baselines=False,
            **more,
        )
    )


def test_references_stand_below_the_methods(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 0)
    compared(path, tmp_path / "runs")
    table = build_table(tmp_path / "runs")
    assert [row.method for row in table.rows] == ["ls", "imtl-g"]
    assert [row.method for row in table.lines] == ["ls", "imtl-g", "mean", "ridge", "forest"]
    wanted = Table(path, "y,c").references()
    for row in table.references:
        assert [cell.mean for cell in row.estimates] == wanted[row.method].tolist()
    # Ridge is exact here, and yet not starred: networks are compared with each other.
    assert wanted["ridge"][0] < 1e-2 < wanted["mean"][0]
    line = next(x for x in render(table, "text").splitlines() if x.startswith("ridge"))
    assert "*" not in line
    assert "Data: a.csv (SHA-256" in render(table, "text")
    assert "least loss on the validation split" in table.notes[0]
    assert len(json.loads(render(table, "json"))["references"]) == 3
    cells = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [row["method"] for row in cells] == [row.method for row in table.lines]
    for row in table.references:
        (found,) = (cell for cell in cells if cell["method"] == row.method)
        assert [float(found[column.name]) for column in table.columns] == wanted[
            row.method
        ].tolist()
    page = write_html(tmp_path / "runs", tmp_path / "page.html").read_text()
    assert "a.csv" in page
    assert "ridge regression" in page


def test_references_are_left_out_on_request_and_of_other_data(tmp_path: Path) -> None:
    compared(written(tmp_path, "a.csv", 0), tmp_path / "runs", references=False)
    assert build_table(tmp_path / "runs").references == ()
    compared(written(tmp_path, "a.csv", 0), tmp_path / "runs")
    file = tmp_path / "runs" / "table" / "references.json"
    content = json.loads(file.read_text())
    content["problem_options"]["data_sha256"] = "0" * 64
    file.write_text(json.dumps(content))
    assert build_table(tmp_path / "runs").references == ()
    file.write_text(json.dumps({**content, "rows": 3}))
    with pytest.raises(ValueError, match=r"references\.json"):
        build_table(tmp_path / "runs")


def test_two_tables_in_one_folder_are_two(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        compared(written(tmp_path, f"{name}.csv", seed), tmp_path / "runs" / name, references=False)
    assert list(build_tables(tmp_path / "runs")) == ["table (a.csv)", "table (b.csv)"]
    page = write_html(tmp_path / "runs", tmp_path / "page.html").read_text()
    assert "table (a.csv)" in page
    assert build_table(tmp_path / "runs" / "a").problem == "table"
    with pytest.raises(ValueError, match=r"holds 2 problems \(table \(a.csv\), table \(b.csv\)\)"):
        build_table(tmp_path / "runs")


def test_what_sharing_did_is_told_by_two_standard_errors() -> None:
    def row(method: str, values: list[float], rank: float | None) -> MethodRow:
        cells = tuple(SeedMean(value, 0.1, 3) for value in values)
        return MethodRow(method, (0, 1, 2), cells, rank, None, None, None, {})

    columns = tuple(
        MetricColumn(n, n, "", h, n) for n, h in (("u", False), ("v", True), ("w", False))
    )
    rows = (row("stl", [2.0, 0.5, 1.0], None), row("ls", [1.0, 0.1, 1.2], 1.0))
    note = sharing_note(ResultTable("toy", columns, rows, {}, (), ()))
    assert "helped u (1 ± 0.1, alone 2 ± 0.1)" in note
    assert "hurt v (0.1 ± 0.1, alone 0.5 ± 0.1)" in note
    assert "made no clear difference in w" in note
    assert sharing_note(ResultTable("toy", columns, rows[1:], {}, (), ())) == ""
