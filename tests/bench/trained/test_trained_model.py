from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from prediction_oracle import check_predictions, recomputed
from torch import nn
from toy_problem import Toy, ToyModel

from ntkmtl.bench import load, problems
from ntkmtl.bench.runs import Run, RunFileError, load_run
from ntkmtl.bench.runs.model_file import write_model
from ntkmtl.bench.runs.run import best_run
from ntkmtl.bench.training import changed_recipe, train

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "run"
    train(Toy(), "ls", 0, folder, threads=1)
    return folder


def rows(problem: Any, split: str) -> Any:
    return problem.evaluation_batch(split, torch.arange(problem.size(split)))


def test_the_kept_network_is_the_one_that_was_tested(toy: Path) -> None:
    network = load(toy, Toy())
    assert not network.model.training
    run = load_run(toy)
    assert tuple(network.metrics("test").values()) == run.result.test
    assert tuple(network.metrics("val").values()) == run.result.val
    assert list(network.metrics()) == ["a", "b", "corr"]


def test_predictions_are_the_outputs_in_the_order_of_the_split(toy: Path) -> None:
    problem = Toy()
    network = load(toy, problem)
    with torch.no_grad():
        outputs = network.model.predict(network.model.represent(rows(problem, "train")))
    found = network.predict("train")
    assert list(found) == ["a", "b", "c"]
    for output, task in zip(outputs, "abc", strict=True):
        torch.testing.assert_close(found[task].values, output)
    of_a_batch = network.predict(rows(problem, "train"))
    torch.testing.assert_close(of_a_batch["b"].values, found["b"].values)
    assert network.truth("train") == {}


def test_loading_leaves_the_random_state(toy: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(toy, Toy()).predict("test")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_task_network_predicts_its_task(tmp_path: Path) -> None:
    run = train(Toy(), "stl", 0, tmp_path, single_task="c", threads=1)
    network = load(tmp_path, Toy())
    assert network.tasks == ("c",)
    assert list(network.predict("test")) == ["c"]
    assert network.metrics("test") == {"corr": run.result.test[0]}


def test_buffers_are_kept(tmp_path: Path) -> None:
    problem = Normalized()
    run = train(problem, "ls", 0, tmp_path, threads=1)
    network = load(tmp_path, problem)
    norm = network.model.trunk[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert int(norm.num_batches_tracked) == run.result.steps
    assert tuple(network.metrics("test").values()) == run.result.test


class Normalized(Toy):
    name = "normalized"

    def model(self, tasks: Sequence[str] | None = None) -> ToyModel:
        model = super().model(tasks)
        model.trunk.insert(1, nn.BatchNorm1d(16))
        return model


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    problem = Tied()
    run = train(problem, "ls", 0, tmp_path, threads=1)
    network = load(tmp_path, problem)
    assert tuple(network.metrics("test").values()) == run.result.test


class Tied(Toy):
    name = "tied"

    def model(self, tasks: Sequence[str] | None = None) -> ToyModel:
        model = super().model(tasks)
        for head in model.heads:
            head.weight = model.heads[0].weight
        return model


def test_a_state_that_cannot_be_kept_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'trunk\.extra\._extra_state', a dict: only tensors"):
        train(Extra(), "ls", 0, tmp_path / "a", threads=1)
    run = train(Extra(), "ls", 0, tmp_path / "b", threads=1, keep_model=False)
    assert run.result.model is None


class Extra(Toy):
    name = "extra"

    def model(self, tasks: Sequence[str] | None = None) -> ToyModel:
        model = super().model(tasks)
        model.trunk.add_module("extra", _Noting())
        return model


class _Noting(nn.Identity):
    def get_extra_state(self) -> Any:
        return {"seen": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


# ------------------------------------------------------------------------------------------------
# Without a network


def test_no_model_leaves_the_network_out_and_trains_nothing_again(tmp_path: Path) -> None:
    run = train(Toy(), "ls", 0, tmp_path, threads=1, keep_model=False)
    assert not (tmp_path / MODEL).exists()
    again = train(Toy(), "ls", 0, tmp_path, threads=1)
    assert again.result == run.result, "a complete run stays as it is"
    with pytest.raises(RunFileError, match="kept no network"):
        load(tmp_path, Toy())


def test_leaving_the_network_out_changes_no_number(toy: Path, tmp_path: Path) -> None:
    run = train(Toy(), "ls", 0, tmp_path, threads=1, keep_model=False)
    assert run.config.identity() == load_run(toy).config.identity()
    assert run.result.test == load_run(toy).result.test


# ------------------------------------------------------------------------------------------------
# Damage


def damaged(toy: Path, tmp_path: Path, change: Any) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(toy, folder)
    change(folder)
    return folder


def flip(folder: Path) -> None:
    content = bytearray((folder / MODEL).read_bytes())
    content[-3] ^= 1
    (folder / MODEL).write_bytes(content)


def cut(folder: Path) -> None:
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / MODEL).unlink()


def make_folder(folder: Path) -> None:
    remove(folder)
    (folder / MODEL).mkdir()


def describe(folder: Path, content: bytes) -> None:
    """Let result.json describe these bytes, as a run made by somebody else might."""
    import hashlib

    (folder / MODEL).write_bytes(content)
    result = json.loads((folder / "result.json").read_text())
    result["model"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, r"model\.safetensors: is damaged: its SHA-256"),
        (cut, r"model\.safetensors: is damaged: it has [\d,]+ bytes, result\.json says"),
        (remove, r"model\.safetensors: is not there, though result\.json names it"),
        (make_folder, r"model\.safetensors: is not there"),
        (lambda f: describe(f, b"\x80\x04pickle"), "is not a network that ntkmtl wrote"),
        (lambda f: describe(f, b""), "'model.bytes' must be a whole number from 1, found 0"),
        (
            lambda f: describe(f, safetensors.torch.save({"a": torch.ones(2)})),
            "is not a network that ntkmtl wrote",
        ),
        (
            lambda f: describe(f, safetensors.torch.save({"a": torch.ones(2)}, {"ntkmtl": "[]"})),
            "is not a network that ntkmtl wrote",
        ),
        (
            lambda f: describe(
                f, safetensors.torch.save({"model.a": torch.ones(2)}, {"ntkmtl": "{}"})
            ),
            "does not fit the network that toy builds",
        ),
    ],
)
def test_damaged_networks_are_refused_by_name(
    toy: Path, tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(RunFileError, match=message):
        load(damaged(toy, tmp_path, change), Toy())


def test_a_network_is_read_back_bit_for_bit_and_written_the_same(tmp_path: Path) -> None:
    weights = {"w": torch.randn(3, 2).T, "n": torch.tensor(7), "h": torch.ones(2).bfloat16()}
    kept = write_model(tmp_path / "a", weights, {"b": [1, None], "a": "ä"}, {"t": torch.ones(1)})
    assert kept == write_model(
        tmp_path / "b", weights, {"a": "ä", "b": [1, None]}, {"t": torch.ones(1)}
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert kept.bytes == (tmp_path / "a").stat().st_size


# ------------------------------------------------------------------------------------------------
# The problem


def test_a_custom_problem_is_not_imported_unasked(toy: Path) -> None:
    with pytest.raises(ValueError, match=r"toy_problem:Toy, a class of your own.*--problem"):
        load(toy)


def test_a_custom_problem_is_found_by_name_with_its_options(tmp_path: Path) -> None:
    problem = problems.create("toy_problem:Toy", data_seed=3)
    run = train(problem, "ls", 0, tmp_path, threads=1)
    assert run.config.created_with == {"data_seed": 3}
    network = load(tmp_path, "toy_problem:Toy")
    assert tuple(network.metrics("test").values()) == run.result.test


def test_another_problem_is_refused(toy: Path) -> None:
    with pytest.raises(ValueError, match=r"another version of its problem toy: .*data_seed is 0"):
        load(toy, Toy(data_seed=1))
    with pytest.raises(ValueError, match=r"is a run of 'toy'. Found the problem 'qm9-mini'"):
        load(toy, problems.create("qm9-mini"))


def test_runs_of_agents_are_refused(toy: Path, tmp_path: Path) -> None:
    def rename(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "problem": "mt10"}))

    with pytest.raises(ValueError, match=r"a run of mt10, whose agents act .* agent\.pt"):
        load(damaged(toy, tmp_path, rename))


def test_unknown_splits_are_refused(toy: Path) -> None:
    network = load(toy, Toy())
    for ask in (network.predict, network.truth, network.metrics):
        with pytest.raises(ValueError, match=r"a split is train, val or test. Found 'dev'"):
            ask("dev")


def test_qm9_mini_is_created_from_its_run_alone(tmp_path: Path) -> None:
    problem = problems.create("qm9-mini", targets="raw")
    run = train(problem, "ls", 0, tmp_path, recipe=changed_recipe(problem.recipe, epochs=1))
    network = load(tmp_path)
    said = {task: p.values.numpy() for task, p in network.predict("test").items()}
    true = {task: values.numpy() for task, values in network.truth("test").items()}
    assert recomputed(network.problem, said, true) == pytest.approx(run.result.test, rel=1e-6)
    check_predictions(network.problem, ("alpha",))


# ------------------------------------------------------------------------------------------------
# The best of several


def scored(run: Run, *val: float) -> Run:
    return replace(run, result=replace(run.result, val=val))


def test_the_best_has_the_best_mean_rank_on_the_validation_split(toy: Path) -> None:
    run = load_run(toy)
    # Ranks 1 2 2, 2 1 3, 3 3 1: lower is better twice, higher once.
    first, second, third = (
        scored(run, 0.1, 5.0, 0.5),
        scored(run, 0.2, 4.0, 0.4),
        scored(run, 0.3, 6.0, 0.9),
    )
    assert best_run([third, second, first]) is first
    assert best_run([first, first]) is first
    without = replace(first, result=replace(first.result, model=None))
    assert best_run([without, third, second]) is second
    single = replace(first, config=replace(first.config, method="stl", tasks=("a",)))
    assert best_run([single]) is None


# ------------------------------------------------------------------------------------------------
# Export


def exported(path: Path) -> tuple[Any, dict[str, Any]]:
    extra = {"ntkmtl.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra["ntkmtl.json"])


def check_exported(network: Any, path: Path, inputs: list[str]) -> None:
    """Compare with the network's predictions on another number of samples than was shown."""
    network.export(path)
    program, about = exported(path)
    assert about["inputs"] == inputs
    assert list(about["tasks"]) == list(network.tasks)
    batch = network.problem.evaluation_batch("test", torch.arange(17))
    given = [part for name, part in zip(batch._fields, batch, strict=True) if name in inputs]
    said = program(*given)
    for task, one in network.predict(batch).items():
        wanted = one.values if one.probabilities is None else one.probabilities
        torch.testing.assert_close(said[task], wanted, rtol=1e-6, atol=1e-6)
        assert about["tasks"][task] == list(one.classes)


def test_exported_networks_predict_the_same(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 2, generator=generator)
    lines = [f"{a:.4f},{b:.4f},{3 * a + b:.4f},{'hi' if a > b else 'lo'}" for a, b in x.tolist()]
    csv = tmp_path / "t.csv"
    csv.write_text("\n".join(["a,b,sum,larger", *lines]))
    for name, options, inputs in (
        ("table", {"csv": csv, "targets": "sum,larger"}, ["inputs"]),
        ("qm9-mini", {}, ["atoms", "mask", "places", "shells", "whole"]),
    ):
        problem = problems.create(name, **options)
        folder = tmp_path / name
        train(problem, "ls", 0, folder, recipe=changed_recipe(problem.recipe, epochs=1))
        check_exported(load(folder), tmp_path / f"{name}.pt2", inputs)


def test_one_task_is_exported(toy: Path, tmp_path: Path) -> None:
    train(Toy(), "stl", 0, tmp_path / "run", single_task="c", threads=1)
    network = load(tmp_path / "run", Toy())
    network.export(tmp_path / "a.pt2")
    program, about = exported(tmp_path / "a.pt2")
    assert about == {"inputs": ["0"], "tasks": {"c": []}}
    x = torch.randn(9, 5)
    said = program(x)
    assert list(said) == ["c"]
    torch.testing.assert_close(said["c"], network.model.heads[0](network.model.trunk(x)))


class Branching(Toy):
    name = "branching"

    def model(self, tasks: Sequence[str] | None = None) -> ToyModel:
        model = super().model(tasks)
        model.trunk.add_module("last", _Branch())
        return model


class _Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_exported_says_so(tmp_path: Path) -> None:
    train(Branching(), "ls", 0, tmp_path / "run", threads=1)
    network = load(tmp_path / "run", Branching())
    with pytest.raises(ValueError, match=r"this network of branching cannot be exported by torch"):
        network.export(tmp_path / "a.pt2")
    assert not (tmp_path / "a.pt2").exists()


def test_what_cannot_be_predicted_is_said_in_words(toy: Path, tmp_path: Path) -> None:
    network = load(toy, Toy())
    for wrong in ({"a": 1}, 5):
        with pytest.raises(ValueError, match=r"predict takes 'train', .*; a batch, as .* Found"):
            network.predict(wrong)
    file = tmp_path / "t.csv"
    file.write_text("\n".join(["a,y", *(f"{n * n % 97},{n % 7}.5" for n in range(60))]) + "\n")
    table = problems.create("table", csv=file, targets="y")
    recipe = replace(table.recipe, epochs=1)
    train(table, "ls", np.int64(0), tmp_path / "run", recipe=recipe, threads=1)
    network = load(tmp_path / "run")
    for wrong in (str(file), {"a": [1.0]}):
        with pytest.raises(ValueError, match=r"data frame or a file's pathlib.Path. Found"):
            network.predict(wrong)
    assert network.predict(file)["y"].values.shape == (60,)
