"""Tables as people have them: numbers, dates, words, classes, names, headers and quotes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import unicodedata
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ntkmtl.bench.problems.table import Table, TableError
from ntkmtl.bench.problems.table._formats import (
    NumberFormat,
    choose_numbers,
    date_text,
    read_numbers,
)
from ntkmtl.bench.problems.table._read import read_table


def written(folder: Path, header: str, rows: list[str], name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def column(problem: Table, name: str) -> Any:
    return next(column for column in problem._prepared.columns if column.name == name)


def truth(problem: Table) -> list[float]:
    return torch.cat([problem._prepared.truth[s][0] for s in ("train", "val", "test")]).tolist()


# ------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1,001.66", "2"], [1001.66, 2]),
        (["1.001,66", "2,5"], [1001.66, 2.5]),
        (["1 001,66", "0,5"], [1001.66, 0.5]),
        (["-0,739", "1,500"], [-0.739, 1.5]),
        (["1\u00a0001,66", "1\u202f000"], [1001.66, 1000]),
        (["1'001.66", "1\u2019000"], [1001.66, 1000]),
        (["1.000.000", "2"], [1e6, 2]),
        (["12,34,567.5"], [1234567.5]),
        (["$1,008.43", "-$5", "($3)"], [1008.43, -5, -3]),
        (["\u20ac 1.001,66", "\u20ac5,00"], [1001.66, 5]),
        (["5 EUR", "1,200.5 EUR"], [5, 1200.5]),
        (["12%", "3.5 %"], [12, 3.5]),
        (["\u22123", "+4"], [-3, 4]),
        (["1e3", "2.5E-1"], [1000, 0.25]),
        (["6,038E+01", "1,5E-3"], [60.38, 0.0015]),
        (["6,038E+01"], [60.38]),
        (["6.038E+01", "1.234e2"], [60.38, 123.4]),
        (["1,234.5E3", "1,000"], [1_234_500, 1000]),
        (["6,038E+01", "1.234,5"], [60.38, 1234.5]),
    ],
)
def test_numbers_are_read_as_people_write_them(texts: list[str], values: list[float]) -> None:
    form, unsure = choose_numbers(texts)
    assert form is not None
    assert not unsure
    np.testing.assert_allclose(read_numbers(texts, form), values, rtol=1e-12)


@pytest.mark.parametrize("texts", [["$5", "\u20ac5"], ["10%", "0.5"], ["5 kg"], ["1,5", "1.5"]])
def test_what_is_not_one_kind_of_number_is_none(texts: list[str]) -> None:
    form, _ = choose_numbers(texts)
    assert form is None or np.isnan(read_numbers(texts, form)).any()


def test_doubtful_separators_follow_other_columns_or_are_told(tmp_path: Path) -> None:
    doubtful = [f"1,{500 + 7 * i % 40}" for i in range(40)]
    assert choose_numbers(doubtful) == (NumberFormat(".", ","), True)
    assert choose_numbers(doubtful, hint=",") == (NumberFormat(",", ""), False)
    rows = [f"{i % 7};{value}" for i, value in enumerate(doubtful)]
    problem = Table(written(tmp_path, "x;y", rows), "y")
    assert "decimal=, reads it the other way" in problem.notice()
    assert min(truth(problem)) == 1500
    # Another column leaves no doubt.
    rows = [f"{i % 7},25;{value}" for i, value in enumerate(doubtful)]
    problem = Table(written(tmp_path, "x;y", rows, "u.csv"), "y")
    assert min(truth(problem)) == 1.5
    assert "the other way" not in problem.notice()
    problem = Table(written(tmp_path, "x;y", rows, "v.csv"), "y", decimal=".")
    assert min(truth(problem)) == 1500


def test_a_target_with_separators_is_a_regression(tmp_path: Path) -> None:
    rows = [f'{i % 7},"{1000 + 100.5 * (i % 11):,.2f}"' for i in range(40)]
    path = written(tmp_path, "x,y", rows)
    for types in (None, "y=regression"):
        problem = Table(path, "y", types=types)
        assert column(problem, "y").kind == "regression"
        assert max(truth(problem)) == 2005.0


def test_errors_of_a_spreadsheet_are_missing_numbers(tmp_path: Path) -> None:
    errors = ["#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#NULL!", "#N/A"]
    rows = [f"{errors[i % 7] if i % 3 == 0 else i * i % 31},{i % 7}" for i in range(60)]
    found = column(Table(written(tmp_path, "x,y", rows), "y"), "x")
    assert (found.kind, found.missing) == ("number", 20)


def test_a_mark_among_few_numbers_is_told_with_the_option(tmp_path: Path) -> None:
    rows = [f"{'-' if i % 4 == 1 else i * i % 31},{i % 7}" for i in range(60)]
    path = written(tmp_path, "x,y", rows)
    assert (
        "15 of 60 are not numbers (first in row 2: '-'; missing=TEXT leaves"
        in column(Table(path, "y"), "x").note
    )
    assert column(Table(path, "y", missing="-"), "x").kind == "number"


def test_labels_that_differ_in_their_last_digits_are_not_called_constant(tmp_path: Path) -> None:
    rows = [f"{i * i % 31},{10**18 + i % 5}" for i in range(60)]
    path = written(tmp_path, "x,y", rows)
    with pytest.raises(TableError, match=r"labels differ \(5: .*types y=classification"):
        Table(path, "y")
    assert column(Table(path, "y", types="y=classification"), "y").content.startswith("5: ")
    rows = [f"{i * i % 31},{('3', '3.0')[i % 2]}" for i in range(60)]
    with pytest.raises(TableError, match="the target is constant, 3 in every"):
        Table(written(tmp_path, "x,y", rows, "u.csv"), "y")


def test_an_infinite_label_is_refused_with_advice_for_a_target(tmp_path: Path) -> None:
    rows = [f"{i * i % 31},{'inf' if i == 3 else i % 7}" for i in range(60)]
    with pytest.raises(TableError, match=r"row 4, column 'y'.* leave the column out of the targ"):
        Table(written(tmp_path, "x,y", rows), "y")


def test_numbers_in_even_steps_are_an_index_only_where_they_are_whole(tmp_path: Path) -> None:
    rows = [f"{i}.5,{i},{i * i % 7}" for i in range(60)]
    problem = Table(written(tmp_path, "depth,row,y", rows), "y")
    assert (problem._fitted.inputs, problem._fitted.ids) == (("depth",), ("row",))


# ------------------------------------------------------------------------------------------------
# Dates


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%Y-%m-%d", "%d/%m/%Y", "%d-%b-%Y", "%b %d, %Y"])
def test_dates_are_features_of_season(tmp_path: Path, form: str) -> None:
    days = [date(2022, 1, 1) + timedelta(days=9 * i) for i in range(60)]
    rows = [f'"{day.strftime(form)}",{i % 7}' for i, day in enumerate(days)]
    problem = Table(written(tmp_path, "day,y", rows), "y")
    assert column(problem, "day").kind == "date"
    assert {"day", "day year cos 1", "day week sin 1"} <= set(problem._fitted.inputs)
    place = problem._fitted.inputs.index("day year cos 1")
    seen = torch.cat([problem._prepared.splits[s].inputs for s in ("train", "val", "test")])
    wanted = [np.cos(2 * np.pi * (day - date(1970, 1, 1)).days / 365.2425) for day in days]
    np.testing.assert_allclose(sorted(seen[:, place].tolist()), sorted(wanted), atol=1e-6)


def test_ambiguous_dates_are_told_and_overruled(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        f"{random.integers(1, 13):02d}/{random.integers(1, 13):02d}/2023,{i % 7}" for i in range(40)
    ]
    path = written(tmp_path, "day,y", rows)
    problem = Table(path, "y")
    assert "types day=date:%d/%m/%Y reads it the other way" in problem.notice()
    assert "written %m/%d/%Y" in column(problem, "day").note
    problem = Table(path, "y", types="day=date:%d/%m/%Y")
    assert "written %d/%m/%Y" in column(problem, "day").note
    with pytest.raises(TableError, match=r"row 1, column 'day': .* not a date written as %Y"):
        Table(path, "y", types="day=date:%Y")
    # A day above 12 leaves no doubt, in this column or in another one.
    for more in ("13/01/2023,1", "01/13/2023,1"):
        found = Table(written(tmp_path, "day,y", [*rows, more], "u.csv"), "y")
        assert "the other way" not in found.notice()


def test_one_value_that_is_no_date_among_dates_is_told(tmp_path: Path) -> None:
    days = [date(2022, 1, 1) + timedelta(days=i) for i in range(40)]
    rows = [f"{day.strftime('%d.%m.%Y')},{i * i % 7}" for i, day in enumerate(days)]
    rows[5] = "31.02.2022,3"
    path = written(tmp_path, "day,y,x", [f"{row},{i % 5}" for i, row in enumerate(rows)])
    problem = Table(path, "y")
    assert "row 6, column 'day': '31.02.2022' is not a date, where most" in problem.notice()
    with pytest.raises(TableError, match=r"row 6, column 'day': '31\.02\.2022' is not a date"):
        Table(path, "y", types="day=date")
    assert column(Table(path, "y", missing="31.02.2022"), "day").kind == "date"
    for types in ("day=category", "day=ignore"):
        assert "is not a date" not in Table(path, "y", types=types).notice()


def test_two_digits_of_a_year_that_give_a_date_to_come_are_told(tmp_path: Path) -> None:
    days = [date(1945, 1, 14) + timedelta(days=400 * i) for i in range(40)]
    rows = [f"{day.strftime('%d.%m.%y')},{i * i % 7}" for i, day in enumerate(days)]
    assert "is read as 2068-" in Table(written(tmp_path, "born,y", rows), "y").notice()
    rows = [f"{day.strftime('%d.%m.%y')},{i * i % 7}" for i, day in enumerate(days[23:] * 2)]
    assert "is read as" not in Table(written(tmp_path, "born,y", rows, "u.csv"), "y").notice()


# ------------------------------------------------------------------------------------------------
# Words and classes


def levels(counts: dict[str, int]) -> list[str]:
    return [word for word, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("counts", "classes"),
    [
        ({"none": 447, "low": 30, "high": 23}, ("high", "low", "none")),
        ({"none": 60, "minor": 40}, ("minor", "none")),
        ({"NA": 50, "EU": 50, "AS": 50}, ("AS", "EU", "NA")),
        ({"null": 40, "a": 40}, ("a", "null")),
        ({"NA": 4, "a": 40, "b": 40}, ("a", "b")),
        ({"": 10, "none": 10, "a": 40, "b": 40}, ("a", "b", "none")),
    ],
)
def test_words_that_look_missing_are_classes_where_they_are_frequent(
    tmp_path: Path, counts: dict[str, int], classes: tuple[str, ...]
) -> None:
    rows = [f"{i * i % 31},{word}" for i, word in enumerate(levels(counts))]
    path = written(tmp_path, "x,y", rows)
    assert Table(path, "y")._fitted.targets[0].classes == classes
    word = next(w for w in counts if w.lower() in ("none", "na", "null"))
    kept, dropped = Table(path, "y", not_missing=word), None
    assert word in kept._fitted.targets[0].classes
    if len(classes) > 2:
        dropped = Table(path, "y", missing=word)
        assert word not in dropped._fitted.targets[0].classes
    assert f"{word!r} in {counts[word]:,} rows" in Table(path, "y").notice()


def test_no_further_string_is_missing_where_none_is_given(tmp_path: Path) -> None:
    rows = [f"{i * i % 31},{'none' if i % 2 else 'low'}" for i in range(60)]
    path = written(tmp_path, "x,y", rows)
    assert Table(path, "y", missing=None)._fitted.targets[0].classes == ("low", "none")


def test_words_among_numbers_are_missing_and_can_be_kept(tmp_path: Path) -> None:
    rows = [f"{'none' if i % 3 == 0 else i % 17},{i % 5}.5" for i in range(60)]
    path = written(tmp_path, "x,y", rows)
    assert (column(Table(path, "y"), "x").kind, column(Table(path, "y"), "x").missing) == (
        "number",
        20,
    )
    assert column(Table(path, "y", not_missing="none"), "x").kind == "category"


def test_a_few_words_among_the_numbers_of_a_feature_are_missing_and_told(tmp_path: Path) -> None:
    rows = [f"{'see note' if i == 7 else i * 37 % 101 + 0.5},{i % 5}.5" for i in range(60)]
    path = written(tmp_path, "x,y", rows)
    problem = Table(path, "y")
    assert (column(problem, "x").kind, column(problem, "x").missing) == ("number", 1)
    assert "row 8, column 'x': 'see note' is not a number, where 59 of 60 are" in problem.notice()
    assert problem.encode_new(path).inputs.inputs.isfinite().all()
    assert column(Table(path, "y", types="x=category"), "x").kind == "category"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("FN", "category"),
        ("TNF", "category"),
        ("YTN", "category"),
        ("YN", "yes/no"),
        ("TF", "yes/no"),
    ],
)
def test_letters_are_yes_and_no_only_in_their_own_pair(
    tmp_path: Path, words: str, kind: str
) -> None:
    """F and N would both be 0."""
    rows = [f"{words[i % len(words)]},{i * i % 7}" for i in range(60)]
    assert column(Table(written(tmp_path, "x,y", rows), "y"), "x").kind == kind


def test_classes_that_are_equal_but_for_case_are_one_or_two(tmp_path: Path) -> None:
    words = ["Yes", "No", "yes", "no", "Yes", "No"]
    rows = [f"{i * i % 31},{words[i % 6]},{('Red', 'red', 'blue')[i % 3]}" for i in range(60)]
    path = written(tmp_path, "x,y,color", rows)
    problem = Table(path, "y")
    assert problem._fitted.targets[0].classes == ("No", "Yes")
    assert "yes is Yes" in column(problem, "y").note
    assert "case_sensitive=true" in column(problem, "color").note
    problem = Table(path, "y", case_sensitive=True)
    assert problem._fitted.targets[0].classes == ("No", "Yes", "no", "yes")


# ------------------------------------------------------------------------------------------------
# High cardinality, leakage, rare classes


def test_many_levels_have_an_input_each_and_the_rest_the_mean_of_the_target(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    effect = random.normal(0, 3, 56)
    town = random.integers(0, 56, 600)
    rows = [f"t{t},{effect[t] + 0.1 * random.normal():.3f}" for t in town]
    path = written(tmp_path, "town,y", rows)
    assert len(Table(path, "y")._fitted.inputs) == 56
    few = Table(path, "y", max_categories=5)
    assert few._fitted.inputs[-1] == "town target 0"
    assert "5 levels have their own, 51 share one" in column(few, "town").note
    means = few._prepared.splits["test"].inputs[:, -1].double()
    target = few._fitted.targets[0]
    said = means * target.scale + target.center
    error = (said - few._prepared.truth["test"][0]).square().mean().sqrt()
    assert error < 0.2 * few.trivial()[0]


@pytest.mark.parametrize(
    ("feature", "how"),
    [
        (lambda y, i: y, "is equal to"),
        (lambda y, i: 2 * y + 1, "rises or falls without exception with"),
        (lambda y, i: np.exp(-y), "rises or falls without exception with"),
        (lambda y, i: "high" if y > 0 else "low", "follows from"),
        (lambda y, i: round(y), "follows from"),
    ],
)
def test_a_feature_that_gives_the_target_away_is_told(
    tmp_path: Path, feature: Any, how: str
) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=80).round(4)
    rows = [f"{random.normal():.4f},{feature(y, i)},{y}" for i, y in enumerate(values)]
    problem = Table(written(tmp_path, "x,leak,y", rows), "y")
    assert f"'leak' {how} the target 'y'" in problem.notice()
    assert "'x'" not in problem.notice()
    assert "the target '" not in Table(problem.path, "y", types="leak=ignore").notice()


def test_a_code_of_a_class_is_told(tmp_path: Path) -> None:
    rows = [f"{i * i % 31},{'abc'[i % 3]},{10 * (i % 3)}" for i in range(60)]
    notice = Table(written(tmp_path, "x,y,code", rows), "y").notice()
    assert "'code' says the same as the target 'y'" in notice


def test_each_split_has_some_of_each_class(tmp_path: Path) -> None:
    rows = [f"{i * i % 31},{'rare' if i < 3 else 'ab'[i % 2]},{i % 7}" for i in range(200)]
    path = written(tmp_path, "x,y,z", rows)
    for seed in range(10):
        problem = Table(path, "y,z", split_seed=seed)
        for split in ("train", "val", "test"):
            assert set(problem._prepared.truth[split][0].tolist()) == {0, 1, 2}
    rows[2] = rows[2].replace("rare", "a")
    problem = Table(written(tmp_path, "x,y,z", rows, "u.csv"), "y,z")
    assert "no row of rare in the split val" in problem.notice()


def test_a_class_of_too_few_rows_is_named(tmp_path: Path) -> None:
    rows = [f"{i * i % 31},{'b' if i == 7 else 'a'}" for i in range(60)]
    with pytest.raises(TableError, match="'b' has 1 row, and each split needs one"):
        Table(written(tmp_path, "x,y", rows), "y")


def test_of_many_leaks_the_first_are_told(tmp_path: Path) -> None:
    rows = [",".join([str(i * i % 31)] * 51) for i in range(60)]
    names = ",".join([*(f"x{i}" for i in range(50)), "y"])
    notice = Table(written(tmp_path, names, rows), "y").notice()
    assert notice.count("is equal to the target") == 20
    assert "30 more features are like these" in notice


def test_a_class_without_a_test_row_is_said_or_refused(tmp_path: Path) -> None:
    parts = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    two = [f"{i * i % 31},{'ab'[i % 2] if i < 80 else 'a'},{part}" for i, part in enumerate(parts)]
    with pytest.raises(TableError, match="'y': one value only among the 20 rows of the split test"):
        Table(written(tmp_path, "x,y,part", two), "y", split_column="part")
    three = [
        f"{i * i % 31},{'abc'[i % 3] if i < 80 else 'ab'[i % 2]},{part}"
        for i, part in enumerate(parts)
    ]
    problem = Table(written(tmp_path, "x,y,part", three, "u.csv"), "y", split_column="part")
    assert problem.metrics[0].label == "y F1 (2 of 3 classes)"
    assert "no row of c in the split test" in problem.notice()


# ------------------------------------------------------------------------------------------------
# Splits by group and by time


def test_groups_stay_together_and_are_no_feature(tmp_path: Path) -> None:
    rows = [f"p{i // 4},{i * i % 31},{i % 7}" for i in range(120)]
    path = written(tmp_path, "patient,x,y", rows)
    problem = Table(path, "y", group="patient")
    assert problem._fitted.inputs == ("x",)
    assert problem._fitted.ids == ("patient",)
    sizes = [problem.size(s) for s in ("train", "val", "test")]
    assert sum(sizes) == 120
    assert all(size % 4 == 0 for size in sizes)
    assert 12 <= sizes[2] <= 24
    rows = [f"{i % 2},{i * i % 31},{i % 7}" for i in range(120)]
    with pytest.raises(TableError, match="2 groups; at least 3"):
        Table(written(tmp_path, "g,x,y", rows, "u.csv"), "y", group="g")


def test_the_largest_group_is_trained_on_where_it_is_most_of_the_rows(tmp_path: Path) -> None:
    rows = [f"{'all' if i < 80 else i},{i * i % 31},{i * i % 7}" for i in range(100)]
    path = written(tmp_path, "g,x,y", rows)
    for seed in range(5):
        assert Table(path, "y", group="g", split_seed=seed).size("train") >= 80


def test_times_that_leave_a_split_empty_are_told(tmp_path: Path) -> None:
    rows = [f"{2000 + min(i, 9)},{i * i % 31},{i * i % 7}" for i in range(40)]
    with pytest.raises(TableError, match=r"of 10 in all the most frequent has 31 of the 40"):
        Table(written(tmp_path, "t,x,y", rows), "y", time="t")


def test_time_orders_the_split(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(100)
    rows = [f"{date(2020, 1, 1) + timedelta(days=int(i))},{i % 7},{i}.5" for i in order]
    problem = Table(written(tmp_path, "day,x,y", rows), "y", time="day", types="x=number")
    ends = [problem._prepared.truth[s][0] for s in ("train", "val", "test")]
    assert ends[0].max() < ends[1].min()
    assert ends[1].max() < ends[2].min()
    assert "day" not in problem._fitted.inputs
    assert "day year cos 1" in problem._fitted.inputs
    with pytest.raises(TableError, match="rows are split by one column"):
        Table(problem.path, "y", time="day", group="x")


# ------------------------------------------------------------------------------------------------
# Names, headers, separators, quotes


@pytest.mark.parametrize("name", ["price, EUR", 'size 5"', "a=b", "[x", "Größe (cm)", "it's"])
def test_targets_have_any_name(tmp_path: Path, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    path = written(tmp_path, f"x,{quoted}", [f"{i * i % 31},{i % 7}.5" for i in range(40)])
    assert Table(path, [name]).tasks == (name,)
    assert Table(path, quoted).tasks == (name,)
    assert Table(path, [name], types={name: "regression"}).tasks == (name,)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_names_are_found_however_they_are_encoded(
    tmp_path: Path, forms: tuple[str, str]
) -> None:
    in_file, asked = (unicodedata.normalize(form, "Höhe") for form in forms)
    path = written(tmp_path, f"x,{in_file}", [f"{i * i % 31},{i % 7}.5" for i in range(40)])
    assert Table(path, asked, types={asked: "regression"}).tasks == ("Höhe",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"x,y"), "it is compressed by gzip. Unpack it first"),
        (bz2.compress(b"x,y"), "it is compressed by bzip2"),
        (lzma.compress(b"x,y"), "it is compressed by xz"),
        (b"PK\x03\x04\0\0", "it is a zip archive or a workbook of Excel"),
        (bytes.fromhex("D0CF11E0A1B11AE1"), "it is a workbook of Excel. Save the sheet as CSV"),
        (b"PAR1\x15\x04", "it is in Parquet's format. Let its name end in .parquet"),
        ("x,y".encode("utf-16"), "it starts with the mark of UTF-16. Pass .* encoding=utf-16"),
        ("x,y".encode("utf-32"), "it starts with the mark of UTF-32. Pass .* encoding=utf-32"),
    ],
)
def test_files_that_are_no_utf_8_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_table(path)


@pytest.mark.parametrize("ending", [".csv.gz", ".zip", ".xlsx", ".ods"])
def test_endings_that_are_not_read_say_what_to_do(tmp_path: Path, ending: str) -> None:
    with pytest.raises(TableError, match=r"Found '\.\w+'\. (Unpack it|Save the sheet)"):
        Table(tmp_path / f"t{ending}", "y")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    text = '"a","b"\n1,2\n'
    for written_as, encoding in [
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16-le"),
        ("utf-32", "utf-32"),
    ]:
        path.write_bytes(text.encode(written_as))
        assert list(read_table(path, encoding).columns) == ["a", "b"]
    path.write_bytes(text.encode("utf-8-sig"))
    with pytest.raises(TableError, match="not text in latin-1: it starts with the mark of UTF-8"):
        read_table(path, "latin-1")


def test_the_line_in_which_excel_names_the_separator(tmp_path: Path) -> None:
    path = written(tmp_path, "sep=;", ["a,x;b", "1,5;2", "2,5;3"])
    assert list(read_table(path).columns) == ["a,x", "b"]
    path = written(tmp_path, "sep=;", ["a;b", "1"])
    with pytest.raises(TableError, match="line 3: 1 cells, where the header has 2"):
        read_table(path)


def test_headerless_files_are_told_and_read(tmp_path: Path) -> None:
    rows = [f"{i % 7}.5,{i * i % 31},{'ab'[i % 2]}" for i in range(40)]
    path = written(tmp_path, rows[0], rows[1:])
    with pytest.raises(TableError, match=r"first line looks like data.*header=false"):
        Table(path, "a")
    problem = Table(path, "column 1", header=False)
    assert sum(problem.size(s) for s in ("train", "val", "test")) == 40
    assert problem._fitted.inputs == ("column 2", "column 3=a", "column 3=b")


def test_cells_separated_by_spaces_are_read_and_told(tmp_path: Path) -> None:
    rows = [f"  {i % 7}.5   {i * i % 31} {'ab'[i % 2]}  " for i in range(40)]
    problem = Table(written(tmp_path, " y  x c", rows), "y")
    assert "separated by spaces" in problem.notice()
    assert problem._fitted.inputs == ("x", "c=a", "c=b")


def test_a_separator_in_one_name_misleads_nobody(tmp_path: Path) -> None:
    rows = [f"{i % 7},5;{i * i % 31};{i % 3}" for i in range(40)]
    assert Table(written(tmp_path, "price, EUR;rooms;x", rows), '"price, EUR"').size("train") == 28


def test_arff_quotes_of_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "t.arff"
    path.write_text(
        "@relation r\n@attribute who string\n@attribute a numeric\n@attribute b numeric\n"
        "@data\n"
        '"O\'Neil, Ann",3,9\n\'say "hi", Bo\',4,8\n"a \\"b\\"",5,7\nO\'Neil,6,6\n'
    )
    who = read_table(path).columns["who"].texts.tolist()
    assert who == ["O'Neil, Ann", 'say "hi", Bo', 'a "b"', "O'Neil"]


def test_arff_escapes_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "t.arff"
    path.write_text(
        "@relation r\n@attribute who string\n"
        "@attribute kind {' x', 'a, b', '50\\%', 'c}'} % of four\n@data\n"
        "'a\\nb\\t\\u00e9\\\\', ' x'\nC:\\new\\table,'a, b'\n'C:\\\\x',50\\%\nit\\'s,'c}'\n"
    )
    read = read_table(path).columns
    assert read["who"].texts.tolist() == ["a\nb\t\u00e9\\", r"C:\new\table", r"C:\x", "it's"]
    assert read["kind"].levels == ("x", "a, b", "50%", "c}")
    assert read["kind"].texts.str.strip().tolist() == list(read["kind"].levels)


def arff(folder: Path, attributes: str, rows: list[str], name: str = "t.arff") -> Path:
    return written(folder, f"@relation r\n{attributes}\n@attribute y real\n@data", rows, name)


@pytest.mark.parametrize(
    ("form", "python"),
    [
        ("'MM-dd-yyyy'", "%m-%d-%Y"),
        ("dd-MM-yyyy", "%d-%m-%Y"),
        ("\"yyyy-dd-MM'T'HH:mm\" % local", "%Y-%d-%mT%H:%M"),
    ],
)
def test_arff_dates_are_read_in_the_format_of_the_header(
    tmp_path: Path, form: str, python: str
) -> None:
    """By convention days come first with dashes; the header knows."""
    days = [date(2022, 1 + i % 12, 1 + 5 * i % 12) for i in range(40)]
    rows = [f"{day.strftime(python)},{i % 7}" for i, day in enumerate(days)]
    problem = Table(arff(tmp_path, f"@attribute day date {form}", rows), "y")
    assert column(problem, "day").note.endswith(f"written {python}")
    assert "the other way" not in problem.notice()
    rows[6] = "32-32-2022,1"
    path = arff(tmp_path, f"@attribute day date {form}", rows, "u.arff")
    with pytest.raises(TableError, match=r"row 7, column 'day': '32-32-2022' is not a date writ"):
        Table(path, "y")
    assert column(Table(path, "y", types="day=category"), "day").kind == "category"


def test_arff_words_in_a_declared_number_are_refused(tmp_path: Path) -> None:
    rows = [f"{'tall' if i == 5 else i * i % 11},{i % 7}" for i in range(40)]
    path = arff(tmp_path, "@attribute size INTEGER", rows)
    with pytest.raises(TableError, match=r"row 6, column 'size': 'tall' is not a number, as the f"):
        Table(path, "y")
    assert column(Table(path, "y", missing="tall"), "size").kind == "number"
    assert column(Table(path, "y", types="size=category"), "size").kind == "category"


def test_mistyped_options_are_told_before_the_file_is_read(tmp_path: Path) -> None:
    missing = tmp_path / "not-there.csv"
    for options, message in [
        ({"types": "a=nummer"}, "the type of 'a' must be"),
        ({"decimal": "x"}, "decimal must be"),
        ({"thousands": "x"}, "thousands must be"),
        ({"encoding": "utf-99"}, "no text encoding"),
        ({"header": "maybe"}, "header must be true or false"),
    ]:
        with pytest.raises(TableError, match=message):
            Table(missing, "y", **options)


# ------------------------------------------------------------------------------------------------
# Strings of digits that are more than a number


def test_codes_of_digits_keep_their_names_and_are_not_merged(tmp_path: Path) -> None:
    long = 100_000_000_000_000_000
    rows = [f"{i % 7:05d},{long + i % 3},{i % 2:03d},{i % 11}" for i in range(60)]
    path = written(tmp_path, "zip,account,kind,y", rows)
    types = "zip=category,account=category,kind=classification"
    problem = Table(csv=str(path), targets="kind,y", types=types)
    assert column(problem, "zip").content.startswith("7: 00000, 00001")
    assert column(problem, "account").content.startswith(f"3: {long}, {long + 1}")
    assert column(problem, "kind").content == "2: 000, 001"
    plain = Table(csv=str(path), targets="y", types="account=ignore,kind=ignore")
    assert column(plain, "zip").kind == "number"
    assert "leading zeros are dropped (types zip=category keeps them)" in column(plain, "zip").note


def test_a_padded_and_an_unpadded_number_are_one_level(tmp_path: Path) -> None:
    rows = [f"{'01' if i % 2 else '1' if i % 3 else '2'},{i % 11}" for i in range(60)]
    problem = Table(csv=str(written(tmp_path, "m,y", rows)), targets="y", types="m=category")
    assert column(problem, "m").content == "2: 1, 2"


def test_classes_of_large_numbers_have_two_names(tmp_path: Path) -> None:
    rows = [f"{i % 11},{10**14 * 9 + i % 2}.0" for i in range(60)]
    problem = Table(csv=str(written(tmp_path, "a,y", rows)), targets="y")
    assert column(problem, "y").content == "2: 900000000000000, 900000000000001"


def test_ids_of_a_parquet_file_go_through_digit_by_digit(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ids = [1234567890123456 + 7 * i for i in range(40)]
    long = [1_700_000_000_000_000_001 + 3 * i for i in range(40)]
    frame = pd.DataFrame({"id": ids, "long": long, "a": generator.random(40)})
    frame["y"] = frame["a"] + generator.random(40)
    frame.to_parquet(tmp_path / "t.parquet")
    problem = Table(csv=str(tmp_path / "t.parquet"), targets="y", types="id=id,long=id")
    new = problem.encode_new(tmp_path / "t.parquet")
    assert new.ids["id"] == [str(one) for one in ids]
    assert new.ids["long"] == [str(one) for one in long]


def test_a_target_whose_name_has_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,"y\nz"\n' + "\n".join(f"{i % 7},{i * i % 11}" for i in range(40)))
    assert Table(csv=str(path), targets="y\nz").tasks == ("y z",)


def test_a_table_of_targets_alone_is_told_as_such(tmp_path: Path) -> None:
    path = written(tmp_path, "y", [str(i * i % 11) for i in range(40)])
    with pytest.raises(TableError, match="no column to predict y from: all of its columns are"):
        Table(csv=str(path), targets="y")


@pytest.mark.parametrize("days", [-719_163.0, 2_932_897.0, -1e17, 1e17])
def test_days_outside_the_years_1_to_9999_are_told_as_numbers(days: float) -> None:
    assert date_text(days) == f"day {days:.6g} from 1970"


# ------------------------------------------------------------------------------------------------
# Levels that a file declares


def declared(folder: Path, levels: list[str], kind: str) -> Path:
    """A table whose column ``k`` declares these levels, with one missing value in row 3."""
    cells = [
        None if i == 2 else levels[i % 25 != 7 and 1 + i % (len(levels) - 1)] for i in range(100)
    ]
    if kind == "arff":
        head = f"@relation r\n@attribute k {{{','.join(levels)}}}\n@attribute x numeric\n"
        head += "@attribute y numeric\n@data"
        rows = [f"{c or '?'},{i % 7},{i * i % 31}" for i, c in enumerate(cells)]
        return written(folder, head, rows, "t.arff")
    numbers = {"x": [i % 7 for i in range(100)], "y": [i * i % 31 for i in range(100)]}
    pd.DataFrame({"k": pd.Categorical(cells), **numbers}).to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize("kind", ["arff", "parquet"])
@pytest.mark.parametrize(
    "levels", [["none", "low", "high"], ["NA", "none", "null"], ["nan", "low"], ["NA", "1", "2"]]
)
def test_declared_levels_are_never_missing(tmp_path: Path, levels: list[str], kind: str) -> None:
    path = declared(tmp_path, levels, kind)
    found = column(Table(path, "y"), "k")
    assert (found.kind, found.missing) == ("category", 1)
    problem = Table(path, "k")
    assert problem._fitted.targets[0].classes == tuple(sorted(levels))
    feature = Table(path, "y")
    new = feature.encode_new(path)
    names = [f"k={level}" for level in sorted(levels)]
    places = [feature._fitted.inputs.index(name) for name in names]
    assert new.warnings == []
    assert new.inputs.inputs[:, places].sum(1).tolist() == [float(i != 2) for i in range(100)]
    # What a user says of it counts more than what the file declares.
    asked = Table(path, "y", missing=levels[0])
    assert column(asked, "k").missing > 1


def test_words_of_a_declared_column_that_is_asked_to_be_numbers_are_missing(tmp_path: Path) -> None:
    head = "@relation r\n@attribute k {NA,1,2}\n@attribute y numeric\n@data"
    rows = [f"{'NA' if i % 50 == 7 else 1 + i % 2},{i * i % 31}" for i in range(100)]
    found = column(Table(written(tmp_path, head, rows, "t.arff"), "y", types="k=number"), "k")
    assert (found.kind, found.missing) == ("number", 2)


def test_classes_that_are_taken_as_missing_are_told_with_the_way_out(tmp_path: Path) -> None:
    for levels in (["none", "NA", "null"], ["nan", "low"]):
        rows = [f"{i % 7},{levels[i % len(levels)]}" for i in range(60)]
        path = written(tmp_path, "x,k", rows)
        for types in (None, "k=classification"):
            with pytest.raises(TableError, match="not_missing=") as caught:
                Table(path, "k", types=types)
            way = str(caught.value).partition("not_missing=")[2].partition(" ")[0]
            problem = Table(path, "k", types=types, not_missing=way)
            assert problem._fitted.targets[0].classes == tuple(sorted(levels))


# ------------------------------------------------------------------------------------------------
# Numbers with a unit behind them

WEIGHTS = [round(1.25 + i * i % 37 / 8, 3) for i in range(120)]


@pytest.mark.parametrize(
    ("unit", "write"),
    [
        *(
            ("kg", "{:.3f} kg"),
            ("\u00b0C", "{:.3f} \u00b0C"),
            ("m", "{:.3f}m"),
            ("m2", "{:.3f} m2"),
        ),
        *(
            ("\u00b5g/m\u00b3", "{:.3f}\u00b5g/m\u00b3"),
            ("sq ft", "{:.3f} sq ft"),
            ("g", "{:.4e} g"),
        ),
    ],
)
def test_numbers_that_share_a_unit_are_numbers(tmp_path: Path, unit: str, write: str) -> None:
    rows = [f"{i % 7},{write.format(w)},{w}" for i, w in enumerate(WEIGHTS)]
    path = written(tmp_path, "x,w,plain", rows)
    problem = Table(path, "w", types="plain=ignore")
    assert problem._fitted.targets[0].unit == unit
    np.testing.assert_allclose(sorted(truth(problem)), sorted(WEIGHTS), rtol=1e-12)
    assert f"RMSE (types w=classification makes them classes); in {unit}" in problem.notice()
    found, plain = Table(path, "x", types="plain=ignore"), Table(path, "x", types="w=ignore")
    assert f"types w=category keeps its strings; in {unit}" in found.notice()
    for split in ("train", "val", "test"):
        inputs = found._prepared.splits[split].inputs
        torch.testing.assert_close(inputs, plain._prepared.splits[split].inputs)
    new = found.encode_new(written(tmp_path, "w,x", [f"{write.format(2)},1", "2,1"], "n.csv"))
    assert f"1 values are not as in training (in {unit})" in new.warnings[0]
    assert column(Table(path, "x", types="w=category,plain=ignore"), "w").kind == "category"


def test_few_levels_with_a_unit_are_levels_but_on_request(tmp_path: Path) -> None:
    path = written(tmp_path, "w,y", [f"{2 + i % 3} doors,{i * i % 31}" for i in range(60)])
    assert column(Table(path, "y"), "w").content == "3: 2 doors, 3 doors, 4 doors"
    assert column(Table(path, "y", types="w=number"), "w").content == "2 to 4"
    path = written(tmp_path, "w,y", [f"{1 + i % 12} PM,{i * i % 31}" for i in range(60)], "v.csv")
    assert column(Table(path, "y"), "w").kind == "category"
    path = written(tmp_path, "w,y", [f"{2 + i % 30}A,{i * i % 31}" for i in range(60)], "u.csv")
    assert column(Table(path, "y"), "w").kind == "category"


def test_missing_words_among_units_are_missing(tmp_path: Path) -> None:
    rows = [f"{'NA' if i % 4 == 1 else f'{w} kg'},{i * i % 31}" for i, w in enumerate(WEIGHTS)]
    found = column(Table(written(tmp_path, "w,y", rows), "y"), "w")
    assert (found.kind, found.missing) == ("number", 30)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (("{} kg", "{} g"), "numbers with 'g', 'kg', which are read as numbers only if"),
        (("EUR {}", "0"), "numbers with 'EUR' and without a unit, which are read as"),
        (("{}-", "{}"), "is not a number"),
    ],
)
def test_mixed_units_are_refused_in_words(
    tmp_path: Path, write: tuple[str, str], words: str
) -> None:
    cells = [write[i % 9 == 4].format(i + w) for i, w in enumerate(WEIGHTS)]
    path = written(tmp_path, "x,w", [f"{i % 7},{cell}" for i, cell in enumerate(cells)])
    for types in (None, "w=regression"):
        with pytest.raises(TableError) as caught:
            Table(path, "w", types=types)
        assert words in str(caught.value)
        assert "try types w=regression" not in str(caught.value)
    with pytest.raises(TableError, match="is not a number, as types w=number wants it"):
        Table(path, "x", types="w=number")


def test_a_category_of_mixed_units_is_told(tmp_path: Path) -> None:
    rows = [f"{i % 20 + 1.5} {'kg' if i % 3 else 'g'},{i * i % 31}" for i in range(120)]
    path = written(tmp_path, "w,y", rows)
    assert "Warning: " in Table(path, "y").notice()
    assert "'w' has numbers with 'g', 'kg', which are read" in Table(path, "y").notice()
    assert "numbers with" not in Table(path, "y", types="w=category").notice()
    rows = [
        f"{i % 40} {('Main St', 'Oak Ave', 'Elm', 'Ash', 'Fir', 'Bay', 'Sea')[i % 7]},{i % 9}"
        for i in range(400)
    ]
    assert "numbers with" not in Table(written(tmp_path, "w,y", rows, "u.csv"), "y").notice()
