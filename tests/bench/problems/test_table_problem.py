"""The problem ``table``: reading, typing, encoding, losses, metrics, and real tables."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ntkmtl.bench import problems
from ntkmtl.bench.problems.table import Table, TableError
from ntkmtl.bench.problems.table._columns import Target
from ntkmtl.bench.problems.table._fitted import fit_encoder, standardization
from ntkmtl.bench.problems.table._metrics import macro_f1
from ntkmtl.bench.problems.table._model import recipe_for
from ntkmtl.bench.problems.table._options import Shares
from ntkmtl.bench.problems.table._read import read_table
from ntkmtl.bench.problems.table._splits import _at_random
from ntkmtl.bench.training.trainer import train

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data" / "multi-target"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real tables are not in {DATA}")


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def mixed(rows: int = 60, seed: int = 0) -> str:
    """Two targets with missing labels, and a feature of every kind."""
    random = np.random.default_rng(seed)
    lines = ["id,size,color,sold,built,comment,price,kind"]
    for i in range(rows):
        size = random.normal()
        price = "" if i % 7 == 0 else f"{3 * size + 0.1 * random.normal():.4f}"
        kind = "NA" if i % 11 == 0 else ("big" if size > 0 else "small")
        lines.append(
            f"{i},{'' if i % 5 == 0 else f'{size:.4f}'},{('red', 'green', 'blue')[i % 3]},"
            f"{'yes' if i % 2 else 'no'},2020-01-{1 + i % 28:02d},text {i},{price},{kind}"
        )
    return "\n".join(lines) + "\n"


def by_name(problem: Table) -> dict[str, Any]:
    return {column.name: column for column in problem._prepared.columns}


def test_columns_are_typed_and_shown(tmp_path: Path) -> None:
    problem = Table(table(tmp_path, mixed()), targets="price,kind")
    columns = by_name(problem)
    assert {name: (c.role, c.kind) for name, c in columns.items()} == {
        "id": ("id", "number"),
        "size": ("feature", "number"),
        "color": ("feature", "category"),
        "sold": ("feature", "yes/no"),
        "built": ("feature", "date"),
        "comment": ("id", "text"),
        "price": ("target", "regression"),
        "kind": ("target", "classification"),
    }
    assert columns["size"].missing == 12
    assert columns["price"].missing == 9
    notice = problem.notice()
    for text in ("Warning: 2 columns are not used: id, comment", "2020-01-01 to 2020-01-28"):
        assert text in notice
    names = problem._fitted.inputs
    assert "size missing" in names
    assert {"color=red", "color=green", "color=blue"} <= set(names)


def test_types_asked_for_win(tmp_path: Path) -> None:
    path = table(tmp_path, mixed())
    problem = Table(path, "price,kind", types="id=number, color=ignore,built=category")
    columns = by_name(problem)
    assert columns["id"].role == "feature"
    assert columns["color"].role == "left out"
    assert columns["built"].kind == "category"
    rows = "\n".join(f"{i % 4},{i % 3},{i}.5" for i in range(40))
    path = table(tmp_path, f"a,b,x\n{rows}", "u.csv")
    assert by_name(Table(path, "a"))["a"].kind == "regression"
    problem = Table(path, "a", types={"a": "classification"})
    assert problem._fitted.targets[0].classes == ("0", "1", "2", "3")


def test_inputs_are_standardized_by_the_training_rows_alone(tmp_path: Path) -> None:
    problem = Table(table(tmp_path, mixed(200)), targets="price", types="kind=ignore,id=ignore")
    column = problem._fitted.inputs.index("size")
    train = problem._prepared.splits["train"].inputs[:, column].double()
    known = train[train != 0]
    assert known.mean().abs() < 1e-6
    assert (known.std(correction=0) - 1).abs() < 1e-6
    test = problem._prepared.splits["test"].inputs[:, column]
    assert test[test != 0].mean().abs() > 1e-4


def test_categories_beyond_the_cap_share_a_column(tmp_path: Path) -> None:
    rows = "\n".join(
        f"c{min(i % 10, 9 if i % 10 < 8 else i % 10)},{i * 7 % 13}" for i in range(200)
    )
    problem = Table(table(tmp_path, f"c,y\n{rows}"), "y", max_categories=3)
    assert len(problem._fitted.inputs) == 5
    assert problem._fitted.inputs[-2:] == ("c other", "c target 0")
    assert (problem._prepared.splits["train"].inputs[:, :4].sum(1) == 1).all()


def test_encoding_agrees_with_a_slow_one() -> None:
    from ntkmtl.bench.problems.table._columns import Feature

    random = np.random.default_rng(1)
    numbers = random.normal(5, 3, 50)
    numbers[::6] = np.nan
    codes = random.integers(-1, 5, 50)
    training = np.arange(0, 50, 2)
    features = [
        Feature("x", numbers=numbers),
        Feature("c", "category", codes=codes, levels=tuple("abcde")),
    ]
    found = np.concatenate([fit_encoder(each, training)[1] for each in features], axis=1)
    known = [numbers[i] for i in training if not math.isnan(numbers[i])]
    mean = sum(known) / len(known)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in known) / len(known))
    for row in range(50):
        wanted = (
            [0.0, 1.0] if math.isnan(numbers[row]) else [(numbers[row] - mean) / deviation, 0.0]
        )
        wanted += [float(codes[row] == code) for code in range(5)] + [float(codes[row] < 0)]
        np.testing.assert_allclose(found[row], np.float32(wanted), rtol=1e-6, atol=1e-7)
    assert standardization(numbers[training]) == pytest.approx((mean, deviation), rel=1e-12)


def test_losses_leave_missing_labels_out(tmp_path: Path) -> None:
    problem = Table(table(tmp_path, mixed(100)), targets="price,kind")
    batch = problem.batch("train", torch.arange(problem.size("train")))
    outputs = [torch.randn(len(batch.inputs), 1), torch.randn(len(batch.inputs), 2)]
    losses = problem.losses(outputs, batch)
    price, kind = batch.labels
    squares = [
        (float(o) - float(y)) ** 2
        for o, y in zip(outputs[0][:, 0].double(), price.double(), strict=True)
        if not math.isnan(y)
    ]
    assert float(losses["price"]) == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    logs = outputs[1].double().log_softmax(1)
    entropy = [-float(logs[i, c]) for i, c in enumerate(kind.tolist()) if c >= 0]
    assert float(losses["kind"]) == pytest.approx(sum(entropy) / len(entropy), rel=1e-5)
    unlabeled = problem.batch("train", torch.nonzero(price.isnan())[:, 0])
    assert (
        problem.losses([o[:1].expand(len(unlabeled.inputs), -1) for o in outputs], unlabeled)[
            "price"
        ]
        is None
    )


def test_metrics_are_in_the_units_of_the_file(tmp_path: Path) -> None:
    path = table(
        tmp_path, "x,y\n" + "\n".join(f"{i % 17},{1000 + 50 * (i % 9)}" for i in range(90))
    )
    problem = Table(path, "y")
    torch.manual_seed(0)
    model = problem.model().eval()
    value = float(problem.evaluate(model, "test")[0])
    whole = problem._prepared.splits["test"]
    truth = problem._prepared.truth["test"][0]
    task = problem._fitted.targets[0]
    with torch.no_grad():
        said = model.predict(model.represent(whole))[0][:, 0].double() * task.scale + task.center
    wanted = math.sqrt(
        sum((a - b) ** 2 for a, b in zip(said.tolist(), truth.tolist(), strict=True)) / len(truth)
    )
    assert value == pytest.approx(wanted, rel=1e-9)
    # The mean predictor's error is near the column's own spread, 129.
    assert 80 < float(problem.trivial()[0]) < 180


def test_macro_f1_agrees_with_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional")
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3, 7):
        said = torch.randint(0, classes, (50,), generator=generator)
        truth = torch.randint(0, classes, (50,), generator=generator)
        wanted = functional.f1_score(
            said, truth, task="multiclass", num_classes=classes, average="macro"
        )
        assert macro_f1(said, truth, classes) == pytest.approx(float(wanted), rel=1e-6)


def test_single_tasks_and_their_order(tmp_path: Path) -> None:
    problem = Table(table(tmp_path, mixed()), targets=["price", "kind"])
    torch.manual_seed(0)
    model = problem.model(["kind", "price"])
    both = problem.evaluate(model, "val", ["kind", "price"])
    model.heads = torch.nn.ModuleList([model.heads[1], model.heads[0]])
    torch.testing.assert_close(both, problem.evaluate(model, "val"))
    with pytest.raises(ValueError, match="no task is named 'prise'"):
        problem.model(["prise"])
    problems.check(problem)


def test_split_column(tmp_path: Path) -> None:
    words = ["train"] * 6 + ["validation", "Test"]
    text = "x,y,part\n" + "\n".join(f"{i * i % 31},{i % 23},{words[i % 8]}" for i in range(80))
    problem = Table(table(tmp_path, text), "y", split_column="part")
    assert [problem.size(s) for s in ("train", "val", "test")] == [60, 10, 10]
    assert problem._fitted.inputs == ("x",)
    with pytest.raises(TableError, match=r"row 7, column 'part': 'validatio' must be train, val"):
        Table(
            table(tmp_path, text.replace("validation", "validatio"), "w.csv"),
            "y",
            split_column="part",
        )


def test_splits_are_by_seed_and_disjoint(tmp_path: Path) -> None:
    path = table(tmp_path, "x,y\n" + "\n".join(f"{i * 7 % 1009},{i * 0.5}" for i in range(100)))
    one, same, other = Table(path, "y"), Table(path, "y"), Table(path, "y", split_seed=1)
    truth = torch.cat([one._prepared.truth[s][0] for s in ("train", "val", "test")])
    assert sorted(truth.tolist()) == [i * 0.5 for i in range(100)]
    assert [one.size(s) for s in ("train", "val", "test")] == [70, 15, 15]
    assert torch.equal(one._prepared.truth["test"][0], same._prepared.truth["test"][0])
    assert not torch.equal(one._prepared.truth["test"][0], other._prepared.truth["test"][0])
    assert one.options == same.options != other.options


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = table(tmp_path, mixed(60))
    before = Table(path, "price")
    table(tmp_path, mixed(61))
    assert Table(path, "price").options["data_sha256"] != before.options["data_sha256"]


def test_parquet_and_csv_give_the_same(tmp_path: Path) -> None:
    import pandas as pd

    path = table(tmp_path, mixed(80))
    frame = pd.read_csv(path, parse_dates=["built"])
    frame["color"] = frame["color"].astype("category")
    frame["sold"] = frame["sold"] == "yes"
    frame.to_parquet(tmp_path / "t.parquet")
    a = Table(path, "price,kind")
    b = Table(tmp_path / "t.parquet", "price,kind")
    assert a._fitted.inputs == b._fitted.inputs
    for split in ("train", "val", "test"):
        torch.testing.assert_close(
            a._prepared.splits[split].inputs, b._prepared.splits[split].inputs
        )
        for left, right in zip(a._prepared.truth[split], b._prepared.truth[split], strict=True):
            torch.testing.assert_close(left, right, equal_nan=True)


@pytest.mark.parametrize("file", ["t.csv", "t.parquet"])
@pytest.mark.parametrize(
    ("token", "gap"), [("-999", -999.0), ("-999.0", -999), ("-9.99e2", -999), ("-999.9", -999.9)]
)
def test_a_number_that_stands_for_missing_is_found_in_every_form(
    tmp_path: Path, file: str, token: str, gap: float
) -> None:
    import pandas as pd

    path = tmp_path / file
    columns: dict[str, Any] = {
        "x": [gap if i % 5 == 0 else 0.5 * i**2 for i in range(40)],
        "count": [gap if i % 5 == 1 else i % 7 for i in range(40)],
        "grade": [str(gap) if i % 5 == 2 else "low" if i % 2 else "high" for i in range(40)],
        "y": [gap if i % 5 == 3 else i % 11 + 0.25 for i in range(40)],
        # The first is 999 days before 1970.
        "day": pd.to_datetime([f"19{67 + i % 3}-04-08" for i in range(40)]),
    }
    frame = pd.DataFrame(columns)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.astype({"x": "float32", "grade": "category"}).to_parquet(path)
    problem = Table(path, "y", missing=token)
    found = by_name(problem)
    assert {name: column.missing for name, column in found.items()} == {
        **dict.fromkeys(("x", "count", "grade", "y"), 8),
        "day": 0,
    }
    assert (found["grade"].kind, found["y"].kind) == ("category", "regression")


@pytest.mark.parametrize("token", ["1e-99", "1e99"])
def test_a_number_beyond_float32_stands_for_neither_zero_nor_infinity(
    tmp_path: Path, token: str
) -> None:
    rows = [f"{i % 7},{0.5 * i**2}" for i in range(40)]
    problem = Table(table(tmp_path, "\n".join(["x,y", *rows])), "y", missing=token)
    assert by_name(problem)["x"].missing == 0
    rows[3] = "inf,1.5"
    with pytest.raises(TableError, match="row 4, column 'x': 'inf' is infinite"):
        Table(table(tmp_path, "\n".join(["x,y", *rows])), "y", missing=token)


def test_every_class_of_a_small_table_is_in_each_split() -> None:
    for seed in range(60):
        random = np.random.default_rng(seed)
        codes = random.permutation([0] * 12 + [1] * int(random.integers(3, 12)))
        target = Target("y", codes, ("a", "b"))
        sides = _at_random([target], np.arange(len(codes)), Shares(0.15, 0.15, seed))
        assert all(set(codes[sides == side]) == {0, 1} for side in range(3)), seed
        share = max(1, round(0.15 * len(codes)))
        assert np.bincount(sides).tolist() == [len(codes) - 2 * share, share, share]


def test_a_target_beyond_the_digits_of_a_float64_is_told_as_such(tmp_path: Path) -> None:
    rows = [f"{i % 7},{10**18 + i**2}" for i in range(40)]
    with pytest.raises(TableError, match=r"'y': its values differ by too little .* subtract one"):
        Table(table(tmp_path, "\n".join(["x,y", *rows])), "y")
    rows = [f"{i % 7},{i},{'train' if i < 30 else 'val' if i < 35 else 'test'}" for i in range(40)]
    rows[:30] = [f"{i % 7},3,train" for i in range(30)]
    with pytest.raises(TableError, match="one value only among the 30 rows of the split train"):
        Table(table(tmp_path, "\n".join(["x,y,part", *rows])), "y", split_column="part")


def test_separators_decimal_commas_and_encodings(tmp_path: Path) -> None:
    text = "größe;y\n" + "\n".join(f"{i % 13},5;{i % 7},25" for i in range(40))
    path = table(tmp_path, text.encode("cp1252"))
    with pytest.raises(TableError, match=r"0xF6 in line 1.*encoding=cp1252"):
        Table(path, "y", decimal=",")
    problem = Table(path, "y", decimal=",", encoding="cp1252")
    assert problem._fitted.inputs == ("größe",)
    path = table(tmp_path, text.encode("utf-16"), "v.csv")
    with pytest.raises(TableError, match="encoding=utf-16"):
        Table(path, "y", decimal=",")
    assert Table(path, "y", decimal=",", encoding="utf-16").size("train") == 28
    path = table(tmp_path, b"\xef\xbb\xbf" + text.encode(), "w.csv")
    assert Table(path, "y", decimal=",")._fitted.inputs == ("größe",)


GOOD = "\n".join(f"{i % 13},{i % 7},{'ab'[i % 2]}" for i in range(40))
HEAD = "x,y,c\n"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "t.csv is empty"),
        ("\n\n", {}, "nothing but empty lines"),
        (HEAD, {}, "has a header, and no rows"),
        (HEAD + GOOD + "\n1,2\n", {}, "line 42: 2 cells, where the header has 3"),
        (HEAD + GOOD + "\n1,2,a,5\n", {}, "line 42: 4 cells, where the header has 3"),
        (HEAD + GOOD + '\n1,"2,a\n', {}, "line 42: a quote is opened here or later and never"),
        (HEAD + GOOD + f"\n1,2,{'z' * 10_000_000}\n", {}, "line 42: a cell has more than 131,072"),
        ("x,y,x\n" + GOOD, {}, "columns 1 and 3 are both named 'x'"),
        (f"x,y,{'n' * 5000}\n" + GOOD, {}, "the name of column 3 has 5,000 characters"),
        ("1,2,3\n" + GOOD, {}, "the first line must name the columns"),
        (HEAD + GOOD, {"targets": "Y"}, "no column 'Y' to be a target; did you mean 'y'"),
        (HEAD + GOOD, {"targets": ""}, "say which columns to predict.* has x, y, c"),
        (HEAD + GOOD, {"targets": "y,y"}, "named twice"),
        (
            HEAD + GOOD,
            {"types": "y=number"},
            "must be regression or classification. Found 'number'",
        ),
        (HEAD + GOOD, {"types": "z=number"}, "no column 'z' to be a column of types"),
        (HEAD + GOOD, {"types": "y"}, "types are written NAME=TYPE"),
        (HEAD + GOOD, {"types": "y=regression,y=classification"}, "type of 'y' is given twice"),
        (HEAD + GOOD, {"types": "c=number"}, "row 1, column 'c': 'a' is not a number"),
        (HEAD + GOOD, {"types": "c=date"}, "row 1, column 'c': 'a' is not a date"),
        (HEAD + GOOD, {"split_column": "c"}, "row 1, column 'c': 'a' must be train, val or test"),
        (HEAD + GOOD, {"split_column": "s"}, "no column 's' to be a split column"),
        (HEAD + GOOD, {"encoding": "utf-99"}, "no text encoding 'utf-99'"),
        (HEAD + GOOD, {"separator": ";;"}, "separator must be one character"),
        (HEAD + GOOD, {"separator": "\\t"}, r"""a tab is written separator='"\\t"'"""),
        (HEAD + GOOD, {"decimal": "x"}, "decimal must be '.' or ','"),
        (HEAD + GOOD, {"val": 0.6, "test": 0.5}, "leave nothing to train on"),
        (HEAD + GOOD, {"depth": 0}, "depth must be a whole number from 1"),
        (HEAD + GOOD + "\ninf,2,a", {}, r"row 41, column 'x': 'inf' is infinite"),
        (HEAD + GOOD + "\n1,1e999,a", {}, r"row 41, column 'y': '1e999' is infinite"),
        (
            HEAD + GOOD + "\n1,two,a",
            {},
            "row 41, column 'y': 'two' is not a number, where 40 of 41",
        ),
        (HEAD + "1,5,a\n" * 40, {}, "column 'y': the target is constant, 5"),
        (HEAD + "1,,a\n" * 40, {}, "column 'y': the target has no labeled row"),
        (HEAD + "1,u,a\n" * 40, {}, "column 'y': the target is constant, 'u'"),
        (HEAD + "\n".join(f"{i % 9},{i},a" for i in range(40)), {}, "It is an index"),
        (
            HEAD + "\n".join(f"{i % 9},w{i},a" for i in range(40)),
            {},
            "40 classes among 40 labeled",
        ),
        (
            HEAD + "\n".join(f"1,{i % 7},a" for i in range(40)),
            {},
            "no column left to predict y from",
        ),
        (HEAD + "1,2,a\n2,3,b\n", {}, "2 rows; at least 20"),
        (HEAD + GOOD.replace(",3,", ",?,").replace(",4,", ",,"), {}, None),
        ("x,y,c\r\n" + GOOD.replace("\n", "\r\n"), {}, None),
        (HEAD + GOOD.replace(",5,", ",-999,"), {"missing": "-999"}, None),
    ],
)
def test_bad_tables_are_refused_in_words(
    text: str, options: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    path = table(tmp_path, text)
    if message is None:
        assert Table(path, **{"targets": "y", **options}).tasks == ("y",)
        return
    with pytest.raises(TableError, match=message):
        Table(path, **{"targets": "y", **options})


def test_a_file_that_is_not_there_or_no_table(tmp_path: Path) -> None:
    for name, message in [
        ("none.csv", "none.csv cannot be read: No such file"),
        ("t.xlsx", r"a table's name ends in .csv.* Found '.xlsx'"),
        ("t.parquet", "cannot be read as Parquet"),
    ]:
        if name.startswith("t"):
            table(tmp_path, "not a table", name)
        with pytest.raises(TableError, match=message):
            Table(tmp_path / name, "y")
    with pytest.raises(TableError, match="say which file to read, as --csv FILE"):
        Table()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@relation r\n@attribute x numeric\n", "no line @data"),
        ("@data\n1\n", "line 1: @data without any @attribute"),
        ("a,b\n1,2\n", "line 1: an ARFF header holds"),
        ("@attribute x color\n@data\n1\n", "line 1: the type of 'x' must be numeric"),
        ("@attribute x {a,b\n@data\n1\n", "line 1: the list of 'x' is not closed"),
        ("@attribute x {a,b}\n@data\na\nc\n", "row 2, column 'x': 'c' is not among"),
        ("@attribute x numeric\n@data\n1\n1,2\n", "line 4: 2 cells, where the header has 1"),
        ("@attribute x numeric\n@data\n{0 1}\n", "line 3: sparse rows are not read"),
        ("@attribute x numeric\n@attribute x numeric\n@data\n1,2\n", "both named 'x'"),
    ],
)
def test_bad_arff_is_refused_in_words(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        read_table(table(tmp_path, text, "t.arff"))


def test_arff_with_quotes_texts_and_dates(tmp_path: Path) -> None:
    text = (
        "% comment\n@RELATION 'a b'\n@ATTRIBUTE 'my x' REAL\n@attribute c {'a, b', \"c\"}\n"
        "@attribute s string\n@attribute d date yyyy-MM-dd\n@DATA\n% more\n"
        "1.5, 'a, b', 'it\\'s', 2020-01-01\n?,c,?,?\n"
    )
    found = read_table(table(tmp_path, text, "t.arff"))
    assert list(found.columns) == ["my x", "c", "s", "d"]
    assert found.columns["c"].levels == ("a, b", "c")
    assert [column.texts.tolist() for column in found.columns.values()] == [
        ["1.5", "?"],
        ["a, b", "c"],
        ["it's", "?"],
        ["2020-01-01", "?"],
    ]


def test_recipe_has_the_steps_it_says() -> None:
    for rows in (8, 14, 100, 538, 6_387, 40_000, 1_000_000):
        recipe = recipe_for(rows)
        steps = recipe.epochs * (rows // recipe.batch_size)
        assert recipe.batch_size <= rows
        assert recipe.epochs == 2 or 1_600 < steps < 3_400, (rows, steps)


def test_the_largest_floats_are_trained_on(tmp_path: Path) -> None:
    text = "x,y\n" + "\n".join(f"{(i % 7 - 3) * 5e307},{(i % 5 - 2) * 8e307}" for i in range(60))
    problem = Table(table(tmp_path, text), "y")
    problems.check(problem)
    assert torch.isfinite(problem.trivial()).all()


def test_too_little_memory_is_said_before_reading(tmp_path: Path, monkeypatch: Any) -> None:
    from ntkmtl.bench.problems.table import _raw

    class Memory:
        available = 100

    monkeypatch.setattr(_raw.psutil, "virtual_memory", Memory)
    with pytest.raises(TableError, match=r"reading .* needs about .* lower --jobs"):
        Table(table(tmp_path, mixed(64)), "price")


def test_command_line(tmp_path: Path) -> None:
    path = table(tmp_path, mixed(80))
    environment = {**os.environ, "NTKMTL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ntkmtl", "compare", "table", "--csv", path.name]
    command += ["--targets", "price,kind", "--types", "color=ignore", "--methods", "ls,ntkmtl-sr"]
    command += ["--seeds", "1", "--jobs", "1", "--epochs", "3", "--out", "runs"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )

    done = run("--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained"] == 4
    assert "Warning: 3 columns are not used: id, comment, color" in done.stderr
    refused = run("--targets", "prize")
    assert refused.returncode == 2
    assert "did you mean 'price'" in refused.stderr
    assert "Traceback" not in refused.stderr


# ------------------------------------------------------------------------------------------------
# Real tables


REAL = {
    "enb": (768, 8, 0, ["Y1", "Y2"]),
    "rf1": (9125, 64, 3264, None),
    "wq": (1060, 16, 0, None),
    "sf2": (1066, 10, 0, ["c-class", "m-class", "x-class"]),
}
LAST = {"rf1": 8, "wq": 14}


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_real_tables_agree_with_scipy(name: str) -> None:
    from scipy.io import arff

    path = DATA / f"{name}.arff"
    found = read_table(path)
    wanted, meta = arff.loadarff(path)
    rows, inputs, missing, targets = REAL[name]
    assert (found.rows, list(found.columns)) == (rows, meta.names())
    targets = targets or list(found.columns)[-LAST[name] :]
    assert len(found.columns) == inputs + len(targets)
    absent = 0
    for column, kind in zip(found.columns.values(), meta.types(), strict=True):
        texts = column.texts.tolist()
        if kind == "nominal":
            assert texts == [value.decode() for value in wanted[column.name]]
        else:
            values = [math.nan if t == "?" else float(t) for t in texts]
            absent += sum(map(math.isnan, values))
            np.testing.assert_array_equal(values, wanted[column.name])
    assert absent == missing
    problem = Table(path, targets)
    assert sum(problem.size(s) for s in ("train", "val", "test")) == rows
    problems.check(problem)


@needs_data
def test_the_mean_predictor_is_beaten_on_enb(tmp_path: Path) -> None:
    problem = Table(DATA / "enb.arff", "Y1,Y2")
    recipe = problem.recipe.__class__(epochs=40, batch_size=32, learning_rate=2e-3)
    result = train(problem, "ls", 0, tmp_path / "run", recipe=recipe, threads=1).result
    # Even a quarter of the recipe leaves less than a third of the mean predictor's error.
    assert (torch.tensor(result.test) < problem.trivial() / 3).all()


def test_the_longest_cell_does_not_depend_on_what_others_allow(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"x,y\n1,{'z' * 200_000}\n")
    before = csv.field_size_limit(10**9)  # as scipy's reader of ARFF does
    try:
        with pytest.raises(TableError, match="line 2: a cell has more than 131,072"):
            read_table(path)
    finally:
        csv.field_size_limit(before)
