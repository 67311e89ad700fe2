"""New rows of a table: encoders that are saved as JSON and need no training data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ntkmtl.bench.problems.table import Table, TableError

ROWS = [
    f"K{i:03d},{(i * 37 % 11) + 0.5},{'' if i % 9 == 4 else ('red', 'green', 'Blue')[i % 3]},"
    f"{1 + i % 28:02d}.{1 + i % 12:02d}.2023,town {i * i % 40},"
    f'"{1000 + 10.5 * (i % 13):,.2f}",{"yes" if i % 2 else "no"}'
    for i in range(120)
]
HEADER = "key,size,color,day,town,price,sold"


@pytest.fixture
def problem(tmp_path: Path) -> Table:
    path = tmp_path / "t.csv"
    path.write_text("\n".join([HEADER, *ROWS]) + "\n")
    return Table(path, "price,sold", max_categories=6)


def restored(problem: Table) -> Table:
    values, tensors = problem.fitted()
    values = json.loads(json.dumps(values, allow_nan=False))
    return Table.from_fitted({"csv": "gone.csv"}, values, tensors)


def new(folder: Path, lines: list[str], name: str = "new.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_of_the_table_are_encoded_as_in_training(problem: Table) -> None:
    found = restored(problem).encode_new(problem.path)
    assert found.warnings == []
    assert found.ids == {"key": [f"K{i:03d}" for i in range(120)]}
    data = problem._prepared
    # Means of targets over levels are estimated from other folds in training: all other inputs.
    plain = [i for i, name in enumerate(problem._fitted.inputs) if "town target" not in name]
    whole = {tuple(row[plain].tolist()) for row in found.inputs.inputs}
    for split in ("train", "val", "test"):
        assert {tuple(row[plain].tolist()) for row in data.splits[split].inputs} <= whole
    # Rows that were not trained on are the same in all inputs.
    every = {tuple(row.tolist()) for row in found.inputs.inputs}
    assert {tuple(row.tolist()) for row in data.splits["test"].inputs} <= every


def test_a_restored_table_predicts_the_same(problem: Table) -> None:
    again = restored(problem)
    assert (again.tasks, again.metrics, again.options) == (
        problem.tasks,
        problem.metrics,
        problem.options,
    )
    torch.manual_seed(0)
    model = problem.model().eval()
    other = again.model().eval()
    other.load_state_dict(model.state_dict())
    rows = again.encode_new(problem.path).inputs
    with torch.no_grad():
        one = problem.predictions(model.predict(model.represent(rows)))
        two = again.predictions(other.predict(other.represent(rows)))
    assert torch.equal(one["price"].values, two["price"].values)
    assert one["sold"].classes == ("no", "yes")
    assert torch.equal(one["sold"].probabilities, two["sold"].probabilities)
    assert again.size("train") == 0
    with pytest.raises(TableError, match="data of this table are not loaded"):
        again.batch("test", torch.arange(1))


def test_what_is_unlike_training_is_told(problem: Table, tmp_path: Path) -> None:
    path = new(
        tmp_path,
        [
            "key,size,color,day,further",
            "N1,3.5,RED,05.06.2023,1",
            "N2,x,mauve,2023-06-05,2",
            "N3,,green,06.06.2023,3",
        ],
    )
    found = restored(problem).encode_new(path)
    assert found.ids == {"key": ["N1", "N2", "N3"]}
    told = "\n".join(found.warnings)
    for words in (
        "Column 'town' is not in",
        "Column 'further' is not known from training",
        "1 level that no training row had ('mauve'), in 1 row.",
        "Column 'size': 1 values are not as in training",
        "first in row 2: 'x'",
        "Column 'day': 1 values are not as in training (written %d.%m.%Y)",
        "Column 'size' is empty in 1 row; no training row was",
    ):
        assert words in told
    names = problem._fitted.inputs
    red = [i for i, name in enumerate(names) if name == "color=red"]
    assert found.inputs.inputs[:, red].flatten().tolist() == [1.0, 0.0, 0.0]
    assert found.inputs.inputs.isfinite().all()
    with pytest.raises(TableError, match="has none of the columns that the network was trained"):
        problem.encode_new(new(tmp_path, ["a,b", "1,2"], "other.csv"))


def test_data_frames_parquet_and_csv_agree(problem: Table, tmp_path: Path) -> None:
    frame = pd.read_csv(problem.path)
    frame.to_parquet(tmp_path / "t.parquet")
    one = problem.encode_new(problem.path)
    for source in (frame, tmp_path / "t.parquet"):
        other = problem.encode_new(source)
        torch.testing.assert_close(one.inputs.inputs, other.inputs.inputs)
        assert other.ids == one.ids


def test_damaged_and_older_encoders_are_refused(problem: Table) -> None:
    values, _ = problem.fitted()
    for damage, message in [
        ({"options": {**values["options"], "version": "table 0"}}, "trained by 'table 0'"),
        ({"table": {"encoders": 3}}, "saved encoders are damaged"),
        ({"network": 3}, "saved table is damaged"),
    ]:
        with pytest.raises(TableError, match=message):
            Table.from_fitted({}, {**values, **damage}, {})


def test_targets_means_are_of_other_folds(problem: Table) -> None:
    place = problem._fitted.inputs.index("town target 0")
    data = problem._prepared
    crossed = data.splits["train"].inputs[:, place]
    whole = problem.encode_new(problem.path).inputs.inputs[:, place]
    assert not set(crossed.tolist()) <= set(whole.tolist())
    assert np.isfinite(crossed.numpy()).all()


def test_dates_numbers_and_yes_are_told_apart_in_a_data_frame(problem: Table) -> None:
    """A number of nanoseconds is not a number of days, and no 5 is a yes."""
    frame = pd.DataFrame(
        {
            "size": pd.to_datetime(["2023-06-05", "2023-06-06"]),
            "day": [19_513.0, 1.686e18],
        }
    )
    found = problem.encode_new(frame)
    told = "\n".join(found.warnings)
    assert "Column 'size': 2 values are not as in training (a number)" in told
    assert "Column 'day': 2 values are not as in training (written %d.%m.%Y)" in told
    place = problem._fitted.inputs.index("size")
    assert found.inputs.inputs[:, place].tolist() == [0.0, 0.0]


def test_numbers_that_are_neither_0_nor_1_are_no_yes(tmp_path: Path) -> None:
    rows = [f"{('yes', 'no')[i % 2]},{i * i % 31}" for i in range(60)]
    problem = Table(new(tmp_path, ["x,y", *rows], "t.csv"), "y")
    whole = problem.encode_new(pd.DataFrame({"x": ["yes", "no", "yes"]}))
    found = problem.encode_new(pd.DataFrame({"x": [1, 0, 5]}))
    assert torch.equal(found.inputs.inputs[:2], whole.inputs.inputs[:2])
    assert "1 values are not as in training (a yes/no)" in found.warnings[0]


def test_lengths_of_time_are_seconds_in_whatever_unit_they_come(tmp_path: Path) -> None:
    taken = pd.to_timedelta([i * i % 31 for i in range(60)], unit="s")
    frame = pd.DataFrame({"taken": taken.as_unit("us"), "y": np.arange(60) ** 2 % 13})
    frame.to_parquet(tmp_path / "t.parquet")
    problem = Table(tmp_path / "t.parquet", "y")
    assert next(c for c in problem._prepared.columns if c.name == "taken").content == "0 to 28"
    known = problem.encode_new(frame).inputs.inputs
    for unit in ("s", "ms", "ns"):
        other = problem.encode_new(frame.assign(taken=taken.as_unit(unit))).inputs.inputs
        assert torch.equal(other, known)


def test_strings_of_every_arrow_type_are_levels(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        colors = pa.array([("red", "green", None)[i % 3] for i in range(60)], kind)
        table = pa.table({"c": colors, "y": [i * i % 13 for i in range(60)]})
        parquet.write_table(table, tmp_path / "t.parquet")
        problem = Table(tmp_path / "t.parquet", "y")
        assert problem._fitted.inputs == ("c=green", "c=red", "c missing"), kind


def wide(values: list[str], name: str = "km") -> list[str]:
    return [f"{name},x", *(f"{value},{i % 7}" for i, value in enumerate(values))]


def test_numbers_far_outside_the_training_rows_are_told(tmp_path: Path) -> None:
    rows = [f"{1 + i % 50},{i % 7},{i * i % 31}" for i in range(200)]
    problem = restored(Table(new(tmp_path, ["km,x,y", *rows], "t.csv"), "y"))
    told = problem.encode_new(new(tmp_path, wide([str(1000 * (1 + i % 50)) for i in range(60)])))
    assert told.warnings == [
        "Column 'km' is far outside the training rows' range of 1 to 50 in 60 rows, the furthest "
        "in row 50: 50,000. Is it in another unit? Predictions there are guesses."
    ]
    told = problem.encode_new(new(tmp_path, wide(["7", "", "98.5", "-47.5", "50.1"])))
    assert "far" not in "".join(told.warnings)  # a bit outside of a range is nothing unusual
    told = problem.encode_new(new(tmp_path, wide(["7", "1e308", "-1e308", "-60", "99.5"])))
    assert "in 4 rows, the furthest in row 2: 1e+308" in told.warnings[0]


def test_dates_far_outside_the_training_rows_are_told(tmp_path: Path) -> None:
    rows = [f"2023-{1 + i % 12:02d}-{1 + i % 28:02d},{i % 7},{i * i % 31}" for i in range(200)]
    path = new(tmp_path, ["day,x,y", *rows], "t.csv")
    for options in ({}, {"time": "day"}):
        problem = Table(path, "y", **options)
        told = problem.encode_new(new(tmp_path, wide(["2024-05-01", "2524-05-01"], "day")))
        assert len(told.warnings) == 1
        assert "in 1 row, the furthest in row 2: 2524-05-01." in told.warnings[0]
        assert "range of 2023-01-0" in told.warnings[0]


def test_heavy_tails_are_told_only_beyond_their_range(tmp_path: Path) -> None:
    rows = [f"{10**6 if i % 100 == 0 else i % 50},{i % 7},{i * i % 31}" for i in range(2000)]
    problem = Table(new(tmp_path, ["km,x,y", *rows], "t.csv"), "y")
    assert problem.encode_new(new(tmp_path, wide(["1000000", "900000"]))).warnings == []
    assert "in row 2" in problem.encode_new(new(tmp_path, wide(["5", "3e6"]))).warnings[0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_long_numbers_of_single_rows_are_ids(tmp_path: Path, kind: str) -> None:
    long = [4111111111111110000 + 7 * i for i in range(60)]
    frame = pd.DataFrame({"key": long, "x": np.arange(60) ** 2 % 31, "y": np.arange(60) ** 2 % 13})
    path = tmp_path / f"t.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    problem = Table(path, "y")
    assert problem._fitted.ids == ("key",)
    assert "key     id" in problem.notice()
    assert problem.encode_new(path).ids["key"] == list(map(str, long))
    # Times in nanoseconds differ as float64, and stay numbers.
    stamps = 1_700_000_000_000_000_000 + 3_600_000_000_123 * np.arange(60)
    frame.assign(key=stamps).to_csv(tmp_path / "u.csv", index=False)
    assert "key" in Table(tmp_path / "u.csv", "y")._fitted.inputs


def test_ids_of_a_split_are_those_of_its_rows(problem: Table) -> None:
    """The sizes of the rows of each id, from the file, are the inputs of that row."""
    size = {row.split(",")[0]: float(row.split(",")[1]) for row in ROWS}
    place = problem._fitted.inputs.index("size")
    found = []
    for split in ("train", "val", "test"):
        keys = problem.row_ids(split)["key"]
        inputs = problem._prepared.splits[split].inputs[:, place].double()
        wanted = torch.tensor([size[key] for key in keys], dtype=torch.float64)
        encoder = next(e for e in problem._fitted.encoders if e.name == "size")
        torch.testing.assert_close(
            inputs * encoder.scale + encoder.center, wanted, rtol=1e-5, atol=1e-5
        )
        found += keys
    assert sorted(found) == sorted(size)
    with pytest.raises(TableError, match="data of this table are not loaded"):
        restored(problem).row_ids("test")


def test_what_to_do_about_a_split_fits_how_it_was_made(tmp_path: Path) -> None:
    part = [("train", "val", "test")[i % 3] for i in range(60)]
    rows = [f"{i * i % 31},{part[i]},{'a' if part[i] == 'val' else 'ab'[i % 2]}" for i in range(60)]
    path = new(tmp_path, ["x,part,y", *rows], "t.csv")
    with pytest.raises(TableError, match=r"Say otherwise in the split column\.") as caught:
        Table(path, "y", split_column="part")
    assert "split_seed" not in str(caught.value)


TOWNS = ["Köln", "Paris", "Málaga"]
FOREIGN = [f"{i * 37 % 101},{TOWNS[i % 3]},{i % 3 + i % 7}" for i in range(120)]


def written(path: Path, encoding: str, separator: str = ",", header: bool = True) -> Path:
    lines = ["size,town,price", *FOREIGN][not header :]
    path.write_bytes("\n".join(lines).replace(",", separator).encode(encoding))
    return path


@pytest.mark.parametrize("trained", ["utf-8", "cp1252", "utf-16", "latin-1", "utf-16-le"])
def test_new_files_are_read_by_their_own_encoding(trained: str, tmp_path: Path) -> None:
    problem = Table(written(tmp_path / "t.csv", trained), "price", encoding=trained)
    wanted = restored(problem).encode_new(problem.path)
    assert wanted.warnings == []
    for other in ("utf-8", "utf-8-sig", "utf-16", trained):
        found = restored(problem).encode_new(written(tmp_path / "new.csv", other))
        assert torch.equal(found.inputs.inputs, wanted.inputs.inputs), other
        assert [line for line in found.warnings if "was read as" not in line] == []
        name = other.removesuffix("-sig")
        if not trained.startswith(name):
            (told,) = found.warnings
            assert f"was read as {name}; the training table was {trained}." in told
    ascii_only = tmp_path / "plain.csv"
    ascii_only.write_bytes(b"size,town\n1,Paris\n2,Paris\n")
    assert len(restored(problem).encode_new(ascii_only).inputs.inputs) == 2


@pytest.mark.parametrize("trained", [None, ";", "|"])
def test_new_files_are_read_by_their_own_separator(trained: str | None, tmp_path: Path) -> None:
    for header in (True, False):
        path = written(tmp_path / "t.csv", "utf-8", trained or ",", header)
        names = "price" if header else "column 3"
        problem = Table(path, names, separator=trained, header=header)
        wanted = restored(problem).encode_new(path)
        for other in (",", ";", "\t"):
            found = restored(problem).encode_new(
                written(tmp_path / "n.csv", "utf-8", other, header)
            )
            assert torch.equal(found.inputs.inputs, wanted.inputs.inputs)
            assert found.warnings == wanted.warnings


def test_what_to_do_about_new_rows_names_no_option_of_training(tmp_path: Path) -> None:
    problem = restored(Table(written(tmp_path / "t.csv", "utf-8"), "price"))
    with pytest.raises(TableError, match="is not text in utf-8: byte 0xF6 in line 2") as caught:
        problem.encode_new(written(tmp_path / "new.csv", "cp1252"))
    assert str(caught.value).endswith("Save it as UTF-8.")
    with pytest.raises(TableError, match=r"byte 0x00 in line 1. Save it as UTF-8") as caught:
        problem.encode_new(written(tmp_path / "new.csv", "utf-16-le"))
    assert "option" not in str(caught.value)
    (tmp_path / "new.csv").write_text("1,2\n3,4\n")
    with pytest.raises(TableError, match=r"holds numbers only: .* Add a line of names.$"):
        problem.encode_new(tmp_path / "new.csv")


def test_empty_cells_of_a_csv_are_missing_for_a_network_of_a_parquet_file(tmp_path: Path) -> None:
    days = pd.Series(pd.date_range("2024-01-01", periods=60)).where(np.arange(60) % 7 != 3)
    numbers = pd.Series(np.arange(60) % 11 + 0.5).where(np.arange(60) % 5 != 2)
    frame = pd.DataFrame({"day": days, "x": numbers, "y": np.arange(60) ** 2 % 13})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "n.csv", index=False)
    for types in (None, "day=category"):
        problem = Table(tmp_path / "t.parquet", "y", types=types)
        known = problem.encode_new(tmp_path / "t.parquet")
        found = problem.encode_new(tmp_path / "n.csv")
        assert torch.equal(found.inputs.inputs, known.inputs.inputs)
        assert found.warnings == known.warnings
