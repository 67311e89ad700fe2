"""Small random tables give a problem that can be trained on, or a clear refusal."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntkmtl.bench.problems.table import Table, TableError

CELLS = st.one_of(
    st.integers(-3, 3).map(str),
    st.floats().map(str),
    st.sampled_from(["", "?", "NA", "yes", "no", "a", "b", "2020-01-01", "1e308", " 1 ", "1,5"]),
    st.text(max_size=5),
)


@st.composite
def written(draw: st.DrawFn) -> str:
    """A table of 0 to 40 rows, its columns of a few values each, and at times a ragged row."""
    width = draw(st.integers(1, 4))
    pools = [draw(st.lists(CELLS, min_size=1, max_size=6)) for _ in range(width)]
    rows = draw(st.integers(0, 40))
    names = draw(st.lists(st.text(max_size=3), min_size=width - 1, max_size=width - 1))
    lines = [["y", *names]]
    random = draw(st.randoms(use_true_random=False))
    for _ in range(rows):
        lines.append([random.choice(pool) for pool in pools])  # noqa: PERF401
    if draw(st.integers(0, 9)) == 0:
        lines.append(["1"] * draw(st.integers(0, 6)))
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue()


def outcome(content: bytes, name: str) -> Table | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return Table(path, "y")
        except TableError as error:
            message = str(error)
    assert name in message
    assert len(message) < 1000
    return None


def trains(problem: Table) -> None:
    assert problem.notice()
    torch.manual_seed(0)
    model = problem.model()
    batch = problem.batch("train", torch.arange(problem.size("train")))
    losses = problem.losses(model.predict(model.represent(batch)), batch)
    assert all(loss is not None and loss.isfinite() for loss in losses.values())
    for split in ("train", "val", "test"):
        assert problem._prepared.splits[split].inputs.isfinite().all()
        assert problem.evaluate(model, split).isfinite().all()


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(written())
def test_random_tables(text: str) -> None:
    problem = outcome(text.encode("utf-8", "surrogatepass"), "t.csv")
    if problem is not None:
        trains(problem)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.sampled_from(["t.csv", "t.arff", "t.parquet"]))
def test_random_bytes(content: bytes, name: str) -> None:
    assert outcome(content, name) is None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_a_damaged_table(place: int, bytes_put_in: bytes) -> None:
    rows = "\n".join(f"{i % 7},{i % 5}.5,{'ab'[i % 2]}" for i in range(40))
    content = f"y,x,c\n{rows}\n".encode()
    problem = outcome(content[:place] + bytes_put_in + content[place:], "t.csv")
    if problem is not None:
        trains(problem)
