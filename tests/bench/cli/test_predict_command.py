from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call, good
from prediction_oracle import recomputed

from ntkmtl.bench import load, problems
from ntkmtl.bench.problems import Prediction
from ntkmtl.bench.runs import load_run
from ntkmtl.bench.trained import write_arrays

TRAINING = Path(__file__).parents[1] / "training"


def write_table(path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = ["area,kind,price,sold"]
    for number in range(200):
        area, kind = generator.random(), "abc"[generator.integers(3)]
        price = "" if number % 9 == 0 else f"{1000 + 50 * area + generator.random():.4f}"
        sold = "" if number % 7 == 0 else ("high", "low", "none so far")[int(3 * area)]
        lines.append(f"{area:.6f},{kind},{price},{sold}")
    path.write_text("\n".join(lines) + "\n")


def columns(text: str) -> dict[str, list[str]]:
    rows = list(csv.reader(io.StringIO(text)))
    return dict(zip(rows[0], map(list, zip(*rows[1:], strict=True)), strict=True))


def test_the_numbers_of_a_table_follow_from_its_predictions() -> None:
    """The metrics of every run, the baselines' too, worked out from the files of predictions."""
    write_table(Path("a.csv"))
    made = ("--csv", "a.csv", "--targets", "price,sold")
    options = ("--epochs", "3", "--seeds", "1", "--jobs", "1", "--methods", "ls,ntkmtl")
    result = good("compare", "table", *made, *options)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Use it: ntkmtl predict runs/table/"), result.stderr
    assert last.endswith(" --csv new.csv -o predictions.csv")
    use = last.removeprefix("Use it: ")
    assert f"best on the validation split: {use}" in Path("runs/report.html").read_text()
    problem = problems.create("table", csv="a.csv", targets="price,sold")
    folders = [Path("runs/table") / method / "seed-0" for method in ("ls", "ntkmtl")]
    folders += [Path("runs/table/stl/seed-0") / task for task in ("price", "sold")]
    for folder in folders:
        good("predict", folder, "--split", "test", "-o", "out.csv")
        found = columns(Path("out.csv").read_text())
        run = load_run(folder)
        classes = ["high", "low", "none so far"]
        said, true = {}, {}
        for task in run.config.tasks:
            if task == "price":
                said[task] = np.array([float(cell) for cell in found[task]])
                true[task] = np.array([float(c) if c else np.nan for c in found["price (true)"]])
            else:
                said[task] = np.array([classes.index(cell) for cell in found[task]])
                cells = found["sold (true)"]
                true[task] = np.array([classes.index(c) if c else -1 for c in cells])
                shares = np.array([[float(c) for c in found[f"sold p({k})"]] for k in classes])
                np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-12)
                assert (shares.argmax(0) == said[task]).all()
        assert recomputed(problem, said, true) == pytest.approx(run.result.test, rel=1e-6)


def test_arrays_and_json_hold_the_same_as_csv() -> None:
    good("run", "qm9-mini", "--method", "ls", "--epochs", "1", "--out", "r")
    folder = "r/qm9-mini/ls/seed-0"
    shown = columns(good("predict", folder, "--split", "val").stdout)
    assert shown["row"] == [str(n) for n in range(500)]
    good("predict", folder, "--split", "val", "-o", "out.npz")
    with np.load("out.npz", allow_pickle=False) as arrays:
        assert arrays["mu"].tolist() == [float(cell) for cell in shown["mu"]]
        assert arrays["mu (true)"].tolist() == [float(cell) for cell in shown["mu (true)"]]
        assert len(arrays) == 1 + 2 * 11
    told = json.loads(good("predict", folder, "--split", "val", "--json").stdout)
    assert told["rows"] == 500
    assert told["columns"]["mu"] == [float(cell) for cell in shown["mu"]]
    told = json.loads(good("predict", folder, "--split", "val", "--json", "-o", "b.csv").stdout)
    assert told["out"] == "b.csv"
    assert "columns" not in told
    assert columns(Path("b.csv").read_text()) == shown


def test_size_and_use_of_the_network_are_said() -> None:
    result = good("run", "toy_problem:Toy", "--method", "ls", "--epochs", "1", "--out", "r")
    assert "s per epoch, network " in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    command = last.removeprefix("Use it: ntkmtl ").split()
    assert command == [
        *("predict", "r/toy/ls/seed-0", "--problem", "toy_problem:Toy"),
        *("--split", "test", "-o", "predictions.npz"),
    ]
    good(*command)
    with np.load("predictions.npz", allow_pickle=False) as arrays:
        assert arrays["a"].shape == (24, 1)
    good("predict", "r/toy/ls/seed-0", "--export", "m.pt2", "--problem", "toy_problem:Toy")
    assert torch.export.load("m.pt2").module()(torch.zeros(7, 5))["b"].shape == (7, 1)
    refused = call("predict", "r/toy/ls/seed-0", "--split", "test", "--problem", "toy_problem:Toy")
    assert refused.exit_code == 2
    assert "has shape (1,), which is not a cell of a table; write -o FILE.npz" in refused.stderr


def test_no_model() -> None:
    toy = ("toy_problem:Toy", "--epochs", "1", "--out", "r")
    result = good("compare", *toy, "--seeds", "1", "--jobs", "1", "--no-model")
    assert not list(Path("r").rglob("model.safetensors"))
    assert "Use it" not in result.stderr
    refused = call("predict", "r/toy/ls/seed-0", "--split", "test")
    assert refused.exit_code == 2
    assert "kept no network (--no-model" in refused.stderr
    # What is complete stays as it is, and is not trained again for its network.
    before = (Path("r") / "toy" / "ls" / "seed-0" / "result.json").read_bytes()
    good("compare", *toy, "--seeds", "1", "--jobs", "1")
    assert (Path("r") / "toy" / "ls" / "seed-0" / "result.json").read_bytes() == before


def test_cached_baselines_bring_their_networks() -> None:
    toy = ("toy_problem:Toy", "--epochs", "1", "--seeds", "1", "--jobs", "1", "--methods", "ls")
    good("compare", *toy, "--out", "a")
    good("compare", *toy, "--out", "b")
    good("compare", *toy, "--out", "c", "--no-model")
    place = Path("toy/stl/seed-0/a")
    for name in ("model.safetensors", "result.json"):
        assert (Path("a") / place / name).read_bytes() == (Path("b") / place / name).read_bytes()
    assert not (Path("c") / place / "model.safetensors").exists()
    assert load_run(Path("c") / place).result.model is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say one of --split test; --csv FILE"),
        (["--split", "test", "--csv", "a.csv"], "say one of"),
        (["--split", "test", "-o", "out.xlsx"], "-o must end in .csv or .npz, found out.xlsx"),
        (["--split", "test"], "nowhere/config.json: cannot be read"),
    ],
)
def test_wrong_requests_are_refused_in_words(arguments: list[str], message: str) -> None:
    result = call("predict", "nowhere", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_changed_data_are_refused() -> None:
    write_table(Path("a.csv"))
    made = ("--csv", "a.csv", "--targets", "price")
    good("run", "table", *made, "--method", "ls", "--epochs", "1", "--out", "r")
    text = Path("a.csv").read_text()
    Path("a.csv").write_text(text.replace("0,a,", "1,a,"))
    result = call("predict", "r/table/ls/seed-0", "--split", "test")
    assert result.exit_code == 2
    assert "data_sha256 is " in result.stderr
    assert "The data have changed: put the old ones back" in result.stderr
    Path("a.csv").unlink()
    result = call("predict", "r/table/ls/seed-0", "--split", "test")
    assert result.exit_code == 2
    assert "a.csv cannot be read: No such file or directory" in result.stderr


def test_new_rows_are_for_tables() -> None:
    good("run", "toy_problem:Toy", "--method", "ls", "--epochs", "1", "--out", "r")
    Path("new.csv").write_text("a\n1\n")
    asked = ("--csv", "new.csv", "--problem", "toy_problem:Toy")
    result = call("predict", "r/toy/ls/seed-0", *asked)
    assert result.exit_code == 2
    assert "new rows are for runs of a table, and r/toy/ls/seed-0 is one of toy" in result.stderr


def test_from_a_table_to_predictions_of_new_rows_in_two_commands() -> None:
    """The table itself may be gone: all that is needed is in the run."""
    write_table(Path("a.csv"))
    made = ("--csv", "a.csv", "--targets", "price,sold")
    options = ("--epochs", "3", "--seeds", "1", "--jobs", "1", "--methods", "ls,ntkmtl")
    last = good("compare", "table", *made, *options).stderr.strip().splitlines()[-1]
    lines = Path("a.csv").read_text().splitlines()
    Path("a.csv").rename("moved.csv")
    # Columns in another order, without targets, one more, and a level that is new.
    rows = [line.split(",") for line in lines[1:]]
    new = ["kind,more,area", *(f"{kind},7,{area}" for area, kind, *_ in rows)]
    new[1] = f"unseen,7,{new[1].split(',')[2]}"
    Path("new.csv").write_text("\n".join(new) + "\n")
    arguments = last.removeprefix("Use it: ntkmtl ").split()
    result = good(*arguments)
    assert "Warning: " in result.stderr
    assert "unseen" in result.stderr
    assert "more" in result.stderr
    found = columns(Path("predictions.csv").read_text())
    assert list(found) == [
        *("price", "sold", "sold p(high)", "sold p(low)", "sold p(none so far)"),
    ]
    assert len(found["price"]) == len(lines) - 1
    # The same as the rows of the table had, in its own order; the first row is another one now.
    Path("moved.csv").rename("a.csv")
    network = load(arguments[1])
    whole = network.predict(network.encode(Path("a.csv")).inputs)
    np.testing.assert_allclose(
        [float(cell) for cell in found["price"][1:]], whole["price"].values[1:], rtol=1e-6
    )
    shares_of = whole["sold"].probabilities.T
    for name, shares in zip(("high", "low", "none so far"), shares_of, strict=True):
        cells = [float(cell) for cell in found[f"sold p({name})"][1:]]
        np.testing.assert_allclose(cells, shares[1:], rtol=1e-5)


def test_data_frames_are_predicted_in_python_with_warnings() -> None:
    write_table(Path("a.csv"))
    made = ("--csv", "a.csv", "--targets", "price")
    good("run", "table", *made, "--method", "ls", "--epochs", "1", "--out", "r")
    network = load("r/table/ls/seed-0", with_data=False)
    frame = pd.DataFrame({"area": [0.1, 0.2], "kind": ["a", "never"]})
    with pytest.warns(UserWarning, match="never"):
        found = network.predict(frame)
    assert found["price"].values.shape == (2,)
    with pytest.raises(ValueError, match=r"no samples|not loaded"):
        network.predict("test")


def test_the_file_to_predict_is_not_written_over() -> None:
    write_table(Path("a.csv"))
    made = ("--csv", "a.csv", "--targets", "price,sold", "--epochs", "1")
    good("run", "table", "--method", "ls", *made)
    run, before = "runs/table/ls/seed-0", Path("a.csv").read_bytes()
    Path("link.csv").symlink_to("a.csv")
    for out in ("a.csv", "./a.csv", "link.csv"):
        refused = call("predict", run, "--csv", "a.csv", "-o", out)
        assert refused.exit_code == 2
        assert "is read here (a.csv), and would be lost" in refused.stderr
        assert Path("a.csv").read_bytes() == before
    refused = call("predict", run, "--export", "m.pt2", "-o", "b.csv")
    assert refused.exit_code == 2
    assert not Path("m.pt2").exists()
    told = json.loads(good("predict", run, "--export", "m.pt2", "--json").stdout)
    assert told == {"run": run, "exported": "m.pt2"}
    above = call("predict", "runs", "--csv", "a.csv", "--json")
    assert "give the folder of a run" in json.loads(above.stdout)["error"]


def test_ids_stand_beside_the_predictions_of_a_split() -> None:
    lines = [f"K{i:03d},{i % 7},{i * i % 31}" for i in range(60)]
    Path("t.csv").write_text("\n".join(["key,x,y", *lines]) + "\n")
    made = ("--csv", "t.csv", "--target", "y", "--method", "ls", "--epochs", "1", "--out", "r")
    good("run", "table", *made)
    shown = columns(good("predict", "r/table/ls/seed-0", "--split", "test").stdout)
    assert list(shown) == ["row", "key", "y", "y (true)"]
    label = {line.split(",")[0]: float(line.split(",")[2]) for line in lines}
    assert [label[key] for key in shown["key"]] == [float(cell) for cell in shown["y (true)"]]


def test_the_training_table_is_not_written_over() -> None:
    write_table(Path("a.csv"))
    write_table(Path("new.csv"))
    made = ("--csv", "a.csv", "--targets", "price,sold", "--epochs", "1")
    good("run", "table", "--method", "ls", *made)
    run, before = Path("runs/table/ls/seed-0"), Path("a.csv").read_bytes()
    Path("link.csv").symlink_to("a.csv")
    files = {path: path.read_bytes() for path in run.iterdir()}
    for asked in (
        ("--split", "test", "-o", "a.csv"),
        ("--split", "test", "-o", "link.csv"),
        ("--csv", "new.csv", "-o", "a.csv"),
        ("--export", "a.csv"),
        ("--export", run / "model.safetensors"),
        ("--split", "test", "-o", run / "steps.npz"),
    ):
        refused = call("predict", run, *asked)
        assert refused.exit_code == 2, asked
        assert "give another name" in refused.stderr
    for target in ("a.csv", run / "config.json", run / "model.safetensors"):
        refused = call("report", "runs", "-o", target)
        assert refused.exit_code == 2, target
        assert "give another name" in refused.stderr
    assert Path("a.csv").read_bytes() == before
    assert {path: path.read_bytes() for path in run.iterdir()} == files
    for _ in range(2):  # what it has written itself is written again
        good("predict", run, "--split", "test", "-o", "out.csv")
        good("predict", run, "--export", "out.pt2")
        good("report", "runs", "-o", "page")


def test_no_column_takes_the_place_of_another() -> None:
    lines = ["a,y,y (true)", *(f"{n * n % 61},{n % 7},{n % 5}.5" for n in range(60))]
    Path("names.csv").write_text("\n".join(lines) + "\n")
    made = ("--csv", "names.csv", "--target", "y", "--target", "y (true)", "--epochs", "1")
    good("run", "table", "--method", "ls", *made)
    run = "runs/table/ls/seed-0"
    for out in ("p.npz", "p.csv"):
        refused = call("predict", run, "--split", "test", "-o", out)
        assert refused.exit_code == 2
        assert "two columns would be named 'y (true)', and one would be lost" in refused.stderr
        assert not Path(out).exists()
    # Without labels there is no such column.
    good("predict", run, "--csv", "names.csv", "-o", "p.npz")
    found = load(run).predict("test")
    with np.load("p.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == sorted(found)


@pytest.mark.parametrize("clash", ["T (true)", "T (classes)", "T (probabilities)", "id"])
def test_no_array_takes_the_place_of_another(clash: str, tmp_path: Path) -> None:
    shares = torch.tensor([[0.25, 0.75]])
    said = {
        "T": Prediction(torch.tensor([1]), ("no", "yes"), shares),
        clash: Prediction(torch.tensor([2.0])),
    }
    with pytest.raises(ValueError, match="two columns would be named"):
        write_arrays(tmp_path / "p.npz", said, {"T": torch.tensor([0])}, {"id": ["a"]})
    assert not (tmp_path / "p.npz").exists()


def test_export_says_that_it_needs_the_data() -> None:
    write_table(Path("a.csv"))
    made = ("--csv", "a.csv", "--targets", "price", "--epochs", "1")
    good("run", "table", "--method", "ls", *made)
    Path("a.csv").unlink()
    refused = call("predict", "runs/table/ls/seed-0", "--export", "m.pt2")
    assert refused.exit_code == 2
    assert "a.csv cannot be read" in refused.stderr
    assert "--export tries the network on two batches, so it needs the data" in refused.stderr


def test_a_table_of_your_own_is_not_taken_for_ours() -> None:
    Path("own.py").write_text(
        "from toy_problem import Toy\n\nclass Own(Toy):\n    name = 'table'\n"
    )
    result = good("run", "own.py:Own", "--method", "ls", "--epochs", "1", "--out", "r")
    use = result.stderr.strip().splitlines()[-1]
    assert use.endswith("--split test -o predictions.npz"), use
    good(*use.removeprefix("Use it: ntkmtl ").split())


def test_a_problem_whose_source_has_changed_is_told() -> None:
    file = Path("changing_problem.py")
    file.write_text("from toy_problem import Toy\n\nclass Own(Toy):\n    name = 'own'\n")
    good("run", f"{file}:Own", "--method", "ls", "--epochs", "1", "--out", "r")
    asked = ("predict", "r/own/ls/seed-0", "--split", "test", "--problem", f"{file}:Own")
    assert "Warning" not in good(*asked, "-o", "p.npz").stderr
    file.write_text(file.read_text() + "    # other data\n")
    told = good(*asked, "-o", "p.npz").stderr
    assert "Warning: the source of own is not what it was when r/own/ls/seed-0 was trained" in told
