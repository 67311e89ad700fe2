"""Dates in any role: as people write them, whatever file they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ntkmtl.bench.problems._dates import date_texts
from ntkmtl.bench.problems.base import Prediction
from ntkmtl.bench.problems.table import Table, TableError
from ntkmtl.bench.trained import columns_of
from ntkmtl.bench.trained._model import joined

ROWS = 60


def days(step: int = 1) -> pd.Series:
    return pd.Series(
        pd.Timestamp("2023-12-30") + pd.to_timedelta([i % 6 * step for i in range(ROWS)], "D")
    )


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({**columns, "x": np.arange(ROWS) ** 2 % 31, "y": np.arange(ROWS) ** 2 % 13})


def parquet(folder: Path, **columns: object) -> Path:
    frame(**columns).to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def test_dates_as_text_are_those_of_pandas() -> None:
    random = np.random.default_rng(0)
    times = pd.Series(pd.to_datetime(random.integers(-(10**9), 3 * 10**9, 200), unit="s"))
    since = (times - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)
    assert date_texts(since) == times.astype(str).tolist()
    assert date_texts(since.round()) == times.dt.round("D").dt.strftime("%Y-%m-%d").tolist()
    assert date_texts([]) == []
    assert date_texts([np.nan, 1e300, 0.25e-6]) == ["", "1e+300", "1970-01-01 00:00:00.021600"]


def test_dates_of_a_parquet_file_are_ids_groups_and_classes_as_text(tmp_path: Path) -> None:
    stamp = pd.Timestamp("2020-01-01 01:00") + pd.to_timedelta(np.arange(ROWS), "h")
    path = parquet(tmp_path, day=days(), stamp=stamp)
    problem = Table(path, "day", types="stamp=id,day=classification")
    assert problem._fitted.targets[0].classes == tuple(sorted(days().astype(str).unique()))
    new = problem.encode_new(path)
    assert new.ids["stamp"] == stamp.astype(str).tolist()
    problem = Table(path, "y", group="day", types="stamp=ignore")
    assert "6: 2023-12-30, 2023-12-31, 2024-01-01" in problem.notice()
    assert problem.encode_new(path).ids["day"] == days().astype(str).tolist()


@pytest.mark.parametrize("written", ["%Y-%m-%d", "%d.%m.%Y", "%Y-%m-%d %H:%M"])
def test_dates_as_categories_are_the_same_in_every_file(tmp_path: Path, written: str) -> None:
    whole = frame(day=days(9))
    whole.to_parquet(tmp_path / "t.parquet")
    whole.assign(day=days(9).dt.strftime(written)).to_csv(tmp_path / "t.csv", index=False)
    csv = Table(tmp_path / "t.csv", "y", types="day=category")
    found, known = (csv.encode_new(tmp_path / name) for name in ("t.parquet", "t.csv"))
    assert found.warnings == known.warnings == []
    assert torch.equal(found.inputs.inputs, known.inputs.inputs)
    new = csv.encode_new(whole.assign(day=days(9) + pd.Timedelta(days=1)))
    assert "that no training row had ('2023-12-31'" in new.warnings[0]
    if written == "%d.%m.%Y":
        return
    problem = Table(tmp_path / "t.parquet", "y", types="day=category")
    assert "day=2023-12-30" in problem._fitted.inputs
    found, known = (problem.encode_new(tmp_path / name) for name in ("t.csv", "t.parquet"))
    assert found.warnings == known.warnings == []
    assert torch.equal(found.inputs.inputs, known.inputs.inputs)


def test_predicted_dates_are_written_as_dates(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame(when=days(9).dt.strftime("%d.%m.%Y")).to_csv(path, index=False)
    problem = Table(path, "when,y")
    model = problem.model().eval()
    rows = problem.batch("test", torch.arange(problem.size("test")))
    said = problem.predictions(model.predict(model.represent(rows)))
    assert (said["when"].dates, said["y"].dates) == (True, False)
    truth = problem.truth("test", torch.arange(problem.size("test")))
    shown = columns_of({task: joined([one]) for task, one in said.items()}, truth)
    assert set(shown["when (true)"]) <= set(days(9).astype(str))
    back = (pd.to_datetime(pd.Series(shown["when"])) - pd.Timestamp(0)) / pd.Timedelta(days=1)
    np.testing.assert_allclose(back, said["when"].values.detach(), rtol=0, atol=1e-10)
    days_only = Prediction(torch.tensor([19000.0, float("nan")]), dates=True)
    assert columns_of({"t": days_only}) == {"t": ["2022-01-08", None]}


def test_the_format_of_a_time_column_makes_no_feature_of_its_trend(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame(t=days(9).dt.strftime("%m/%d/%Y")).to_csv(path, index=False)
    plain = Table(path, "y", time="t")
    for kind in ("date:%m/%d/%Y", "date"):
        problem = Table(path, "y", time="t", types={"t": kind})
        assert problem._fitted.inputs == plain._fitted.inputs
        assert "t" not in problem._fitted.inputs
        for split in ("train", "val", "test"):
            batch = problem._prepared.splits[split]
            assert torch.equal(batch.inputs, plain._prepared.splits[split].inputs)
    with pytest.raises(TableError, match="column 'x': '0' is not a date in a form that is known"):
        Table(path, "y", time="x", types={"x": "date"})


@pytest.mark.parametrize(
    "form",
    [
        *("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p", "%m/%d/%Y, %I:%M:%S %p"),
        *("%d/%m/%Y, %H:%M:%S", "%d.%m.%Y, %H:%M:%S", "%d.%m.%y %H:%M:%S", "%d.%m.%Y"),
        *("%A, %B %d, %Y", "%A, %d %B %Y", "%a, %d %b %Y", "%A, %B %d, %Y %I:%M %p"),
        *("%a, %d %b %Y %H:%M:%S +0200", "%a, %d %b %Y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"),
        *("%d %b %Y %H:%M:%S -0330", "%a %b %e %H:%M:%S UTC %Y", "%d.%m.%Y %H:%M:%S.%f"),
    ],
)
def test_dates_are_found_however_they_are_written(tmp_path: Path, form: str) -> None:
    """Against the strings that Python's own calendar writes."""
    stamps = [pd.Timestamp("2023-01-05 15:05:00") + pd.Timedelta(hours=31 * i) for i in range(ROWS)]
    path = tmp_path / "t.csv"
    frame(when=[stamp.strftime(form) for stamp in stamps]).to_csv(path, index=False)
    problem = Table(path, "when", types="x=ignore")
    places = np.concatenate([problem._prepared.truth[s][0] for s in ("train", "val", "test")])
    zone = {"+0200": -2.0, "-0330": 3.5}.get(form[-5:], 0.0)
    unit = "s" if "%S" in form else "min" if "%M" in form else "D"
    wanted = [
        (stamp.floor(unit) + pd.Timedelta(hours=zone) - pd.Timestamp(0)) / pd.Timedelta(days=1)
        for stamp in stamps
    ]
    np.testing.assert_allclose(np.sort(places), wanted, rtol=0, atol=1e-9)


def test_a_constant_date_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path, day=pd.Timestamp("2024-02-29"), other=pd.Timestamp("2024-02-28"))
    with pytest.raises(TableError, match="the target is constant, 2024-02-29 in every"):
        Table(path, "day")
    shown = {c.name: c.content for c in Table(path, "y")._prepared.columns}
    assert shown["other"] == "2024-02-28"
