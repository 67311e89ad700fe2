from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest

from ntkmtl.bench import paper

REGISTRY = {
    "stl", "ls", "si", "rlw", "dwa", "uw", "mgda", "pcgrad", "graddrop", "cagrad", "imtl-g",
    "moco", "nash-mtl", "aligned-mtl", "sdmgrad", "db-mtl", "stch", "famo", "fairgrad", "go4align",
    "ntkmtl", "ntkmtl-sr",
}  # fmt: skip
NOT_IN_REGISTRY = {"mtl-sac", "mtl-sac-te", "mh-sac"}
NUMBERS = [1, 2, 3, 4, 6, 7, 8, 9]


def test_all_tables_are_there() -> None:
    assert [table.number for table in paper.tables()] == NUMBERS


@pytest.mark.parametrize(
    ("number", "rows", "metrics", "others"),
    [
        (1, 22, 9, ["mr", "delta_m"]),
        (2, 14, 0, ["cityscapes_mr", "cityscapes_delta_m", "celeba_mr", "celeba_delta_m"]),
        (3, 15, 11, ["mr", "delta_m"]),
        (4, 12, 1, []),
        (6, 28, 11, ["mr", "delta_m"]),
        (7, 18, 4, ["mr", "delta_m"]),
        (8, 2, 4, ["cityscapes_delta_m", "celeba_delta_m"]),
        (9, 2, 9, ["delta_m"]),
    ],
)
def test_sizes(number: int, rows: int, metrics: int, others: list[str]) -> None:
    table = paper.table(number)
    assert len(table.rows) == rows
    assert len(table.metrics) == metrics
    assert [column.name for column in table.columns if column.kind != "metric"] == others


@pytest.mark.parametrize("number", NUMBERS)
def test_every_cell_is_a_number_in_a_known_column(number: int) -> None:
    table = paper.table(number)
    names = {column.name for column in table.columns}
    for row in table.rows:
        assert set(row.cells) <= names
        for cell in row.cells.values():
            assert re.fullmatch(r"-?\d+(\.\d+)?", cell.text)
            assert re.fullmatch(r"(\d+\.\d+)?", cell.stderr_text)


@pytest.mark.parametrize("number", NUMBERS)
def test_only_known_cells_are_empty(number: int) -> None:
    table = paper.table(number)
    for row in table.rows:
        empty = {column.name for column in table.columns} - set(row.cells)
        if row.method == "stl" and number != 4:
            assert empty == {"mr", "delta_m"}
        elif number == 1 and row.method not in ("ntkmtl", "ntkmtl-sr"):
            assert empty == {"delta_m"}
        elif row.variant == "original":
            assert empty == {"mr"}
        else:
            assert empty == set()


@pytest.mark.parametrize("number", NUMBERS)
def test_methods(number: int) -> None:
    table = paper.table(number)
    assert set(table.methods) <= REGISTRY | (NOT_IN_REGISTRY if number == 4 else set())
    assert len({(row.method, row.variant) for row in table.rows}) == len(table.rows)


def test_every_registered_method_is_published_somewhere() -> None:
    assert {name for table in paper.tables() for name in table.methods} >= REGISTRY


@pytest.mark.parametrize("number", [8, 9])
def test_every_mean_has_its_standard_error(number: int) -> None:
    for row in paper.table(number).rows:
        assert all(cell.stderr is not None for cell in row.cells.values())


def test_printed_names_are_kept() -> None:
    assert paper.table(1).row("moco").printed == "Moco [18]"
    assert paper.table(4).row("moco").printed == "MoCo [18]"
    assert paper.table(4).row("mtl-sac-te").printed == "MTL SAC + TE [59]"


def test_cells() -> None:
    cell = paper.table(4).row("nash-mtl").cells["success_rate"]
    assert (cell.value, cell.stderr, str(cell)) == (0.91, 0.03, "0.91 ± 0.03")
    assert paper.Cell("12").half_unit == 0.5
    assert paper.Cell("-6.99").half_unit == 0.005
    assert paper.Cell("0.060").half_unit == 0.0005
    row = paper.table(8).row("ntkmtl")
    assert row.value("celeba_delta_m") == -0.77
    assert row.stderr("celeba_delta_m") == 0.37
    assert row.stderr("mr") is None
    assert row.value("mr") is None


def test_values_follow_the_metrics() -> None:
    table = paper.table(7)
    assert table.values(table.row("stl")) == (74.01, 93.16, 0.0125, 27.77)
    assert [column.higher_is_better for column in table.metrics] == [True, True, False, False]


def test_tables_cannot_be_changed() -> None:
    row = paper.table(1).row("ls")
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.method = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        row.cells["mr"] = paper.Cell("1")  # type: ignore[index]
    assert hash(paper.table(1)) == hash(paper.table(1))


@pytest.mark.parametrize("number", [0, 5, 10, "3"])
def test_unknown_table(number: Any) -> None:
    with pytest.raises(KeyError, match="choose one of 1, 2, 3, 4, 6, 7, 8, 9"):
        paper.table(number)


def test_unknown_names() -> None:
    with pytest.raises(KeyError, match="Table 4 has no method 'ls'; choose one of stl, mtl-sac"):
        paper.table(4).row("ls")
    with pytest.raises(KeyError, match=r"2 rows of 'ls'.*'original', 'reproduced'"):
        paper.table(6).row("ls")
    with pytest.raises(KeyError, match="0 rows of 'ntkmtl' with variant 'original'"):
        paper.table(6).row("ntkmtl", "original")
    with pytest.raises(KeyError, match="no column 'x'; choose one of success_rate"):
        paper.table(4).column("x")


class TestTablesAgree:
    """Numbers that the paper prints twice."""

    def test_3_and_6(self) -> None:
        for row in paper.table(3).rows:
            assert row.cells == paper.table(6).row(row.method, "reproduced").cells

    def test_2_and_7(self) -> None:
        for row in paper.table(2).rows:
            assert row.value("cityscapes_delta_m") == paper.table(7).row(row.method).delta_m

    @pytest.mark.parametrize(("short", "long"), [(8, 7), (9, 1)])
    def test_metrics_with_standard_errors(self, short: int, long: int) -> None:
        for row in paper.table(short).rows:
            other = paper.table(long)
            assert paper.table(short).values(row) == other.values(other.row(row.method))

    def test_delta_m_with_standard_errors(self) -> None:
        for method in ("ntkmtl", "ntkmtl-sr"):
            short = paper.table(8).row(method)
            long = paper.table(2).row(method)
            for name in ("cityscapes_delta_m", "celeba_delta_m"):
                assert short.value(name) == long.value(name)
            assert paper.table(9).row(method).delta_m == paper.table(1).row(method).delta_m

    def test_text_of_section_4(self) -> None:
        row = paper.table(1).row("ntkmtl")
        assert (row.mr, row.delta_m) == (4.33, -6.99)


class TestRender:
    def test_nyuv2(self) -> None:
        heads, rows = paper.render(1)
        assert heads == [
            "Method", "mIoU ↑", "Pix Acc ↑", "Abs Err ↓", "Rel Err ↓", "Mean ↓", "Median ↓",
            "11.25 ↑", "22.5 ↑", "30 ↑", "MR ↓", "Δm% ↓",
        ]  # fmt: skip
        assert rows[1] == [
            "LS", "39.29", "65.33", "0.5493", "0.2263", "28.15", "23.96", "22.09", "47.50",
            "61.08", "17.44", "",
        ]  # fmt: skip

    def test_two_rows_per_method(self) -> None:
        heads, rows = paper.render(6)
        assert heads[:2] == ["Method", "Rows"]
        assert rows[2][:2] == ["LS", "original"]
        assert rows[3][:2] == ["LS", "reproduced"]

    def test_recomputed(self) -> None:
        heads, rows = paper.render(2, recomputed=True)
        assert heads[1:5] == [
            "CityScapes MR ↓", "CityScapes MR recomputed",
            "CityScapes Δm% ↓", "CityScapes Δm% recomputed",
        ]  # fmt: skip
        assert rows[-1][1:5] == ["6.25", "6.25", "3.84", "3.84"]
        heads, rows = paper.render(1, recomputed=True)
        assert rows[0][-4:] == ["", "", "", ""]
        assert rows[1][-4:] == ["17.44", "17.44", "", "5.59"]

    @pytest.mark.parametrize("recomputed", [False, True])
    @pytest.mark.parametrize("number", NUMBERS)
    def test_rectangular(self, number: int, recomputed: bool) -> None:
        heads, rows = paper.render(number, recomputed=recomputed)
        assert len(rows) == len(paper.table(number).rows)
        assert all(len(row) == len(heads) for row in rows)


def test_data_does_not_import_torch() -> None:
    code = (
        "import sys; from ntkmtl.bench import paper; paper.tables(); paper.render(1); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
