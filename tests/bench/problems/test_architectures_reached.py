"""Architectures as an option of problems: identity, single tasks, training, the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from ntkmtl.bench import problems
from ntkmtl.bench.cli.app import app
from ntkmtl.bench.problems import architectures
from ntkmtl.bench.problems.architectures import HardSharing
from ntkmtl.bench.problems.base import Recipe
from ntkmtl.bench.problems.qm9_mini import QM9Mini
from ntkmtl.bench.problems.qm9_mini._problem import MoleculeNet
from ntkmtl.bench.problems.table import Table
from ntkmtl.bench.problems.table._model import layers
from ntkmtl.bench.training import train

SOFT = [name for name in architectures.names() if name != "hard"]
RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=1e-3, minibatches=2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three targets, two of which miss labels, in blocks that empty whole batches."""
    random = torch.Generator().manual_seed(0)
    lines = ["a,b,c,sum,product,sign"]
    for i in range(60):
        a, b, c = torch.randn(3, generator=random).tolist()
        total = "" if i % 3 == 0 else f"{a + b:.5f}"
        sign = "" if i % 7 == 0 else ("up" if a > 0 else "down")
        lines.append(f"{a:.5f},{b:.5f},{c:.5f},{total},{a * b:.5f},{sign}")
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("\n".join(lines))
    return path


def table(file: Path, name: str = "hard", **options: Any) -> Table:
    options = {"width": 6, "dropout": 0.0, **options}
    return Table(file, "sum,product,sign", architecture=name, **options)


# ------------------------------------------------------------------------------------------------
# Identity


def test_the_options_tell_architectures_and_settings_apart(file: Path) -> None:
    found = [table(file, name) for name in architectures.names()]
    found.append(table(file, "mmoe", architecture_options={"experts": 4}))
    found.append(table(file, "cgc", architecture_options={"task_experts": 0}))
    texts = [json.dumps(problem.options, sort_keys=True) for problem in found]
    assert len(set(texts)) == len(texts)
    explicit = table(file, "mmoe", architecture_options={"experts": 8})
    assert explicit.options == table(file, "mmoe").options
    assert explicit.options["network"]["architecture"] == {"name": "mmoe", "experts": 8}


def test_without_a_choice_network_and_identity_are_what_they_were(file: Path) -> None:
    problem = table(file)
    assert problem.options["network"] == {"width": 6, "depth": 2, "dropout": 0.0}
    assert "architecture" not in QM9Mini().options
    assert isinstance(problem.model(), HardSharing)
    assert isinstance(QM9Mini().model(), MoleculeNet)
    assert "Architecture" not in problem.describe()


def test_hard_sharing_is_layers_and_linear_heads_as_in_the_files_of_earlier_runs(
    file: Path,
) -> None:
    problem = table(file)
    torch.manual_seed(3)
    hard = problem.model()
    torch.manual_seed(3)
    trunk = nn.Sequential(*layers(3, 6, 2, 0.0))
    heads = nn.ModuleList(nn.Linear(6, size) for size in (1, 1, 2))
    assert list(hard.state_dict()) == list(
        nn.ModuleDict({"trunk": trunk, "heads": heads}).state_dict()
    )
    batch = problem.batch("train", torch.arange(9))
    z = trunk(batch.inputs)
    for output, head in zip(hard.predict(hard.represent(batch)), heads, strict=True):
        assert torch.equal(output, head(z))


def test_creating_a_problem_draws_no_random_number(file: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    table(file, "ple")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", SOFT)
def test_reports_name_the_architecture(file: Path, name: str) -> None:
    assert f"Architecture {name}: " in table(file, name).describe()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("soft", {}, "architecture must be one of hard, cross-stitch, mmoe"),
        ("mmoe", {"architecture_options": {"expert": 2}}, "no setting 'expert'"),
        ("dselect-k", {"architecture_options": {"experts": 6}}, "power of two"),
        ("ple", {"depth": 1}, "at least 2 stages"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    file: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        table(file, name, **options)


def test_the_trunk_of_molecules_is_one_stage() -> None:
    with pytest.raises(ValueError, match="with one level it is cgc"):
        problems.create("qm9-mini", architecture="ple")


# ------------------------------------------------------------------------------------------------
# Networks


@pytest.mark.parametrize("name", SOFT)
def test_a_single_task_network_is_the_architecture_with_one_head(file: Path, name: str) -> None:
    problem = table(file, name)
    batch = problem.batch("train", torch.arange(12))
    for task in problem.tasks:
        model = problem.model([task])
        z = model.represent(batch)
        assert len(z) == 1
        losses = problem.losses(model.predict(z), batch, [task])
        assert list(losses) == [task]
        assert problem.evaluate(model, "val", [task]).shape == (1,)


@pytest.mark.parametrize("name", [name for name in SOFT if name != "ple"])
def test_molecules_take_architectures(name: str) -> None:
    problem = QM9Mini(architecture=name)
    batch = problem.batch("train", torch.arange(4))
    model = problem.model(["mu", "cv"])
    z = model.represent(batch)
    assert [tuple(t.shape) for t in z] == [(4, 96)] * 2
    assert [tuple(y.shape) for y in model.predict(z)] == [(4, 1)] * 2
    loss = sum(problem.losses(model.predict(z), batch, ["mu", "cv"]).values())  # type: ignore[arg-type]
    assert isinstance(loss, Tensor)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert problem.options != QM9Mini().options


# ------------------------------------------------------------------------------------------------
# Training


class Watched(Table):
    """A table that remembers the first batch it was asked for."""

    first: Tensor | None = None

    def batch(self, split: Any, indices: Tensor) -> Any:
        if self.first is None:
            self.first = indices.clone()
        return super().batch(split, indices)


@pytest.mark.parametrize("name", architectures.names())
def test_the_trainers_exact_kernel_is_that_of_the_shared_parameters(
    file: Path, tmp_path: Path, name: str
) -> None:
    problem = Watched(file, "product,sign", width=6, architecture=name)
    run = train(
        problem,
        "ntkmtl",
        5,
        tmp_path / "run",
        recipe=RECIPE,
        method_options={"minibatches": 1},
        threads=1,
    )
    assert all(math.isfinite(value) for value in run.result.test)
    assert problem.first is not None
    torch.manual_seed(5)
    model = problem.model()
    batch = problem.batch("train", problem.first)
    losses = problem.losses(model.predict(model.represent(batch)), batch)
    shared = list(model.shared_parameters())
    expected = []
    for loss in losses.values():
        assert loss is not None
        gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        expected.append(sum(float(g.double().square().sum()) for g in gradients if g is not None))
    assert run.steps.eigenvalues is not None
    assert run.steps.eigenvalues[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ls", {}),
        ("ntkmtl-sr", {"minibatches": 2}),
        ("ntkmtl", {"source": "probe"}),
        ("ntkmtl-auto", {}),
        ("imtl-g", {"source": "exact"}),
    ],
)
@pytest.mark.parametrize("name", ["cross-stitch", "ple"])
def test_methods_train_tables_with_missing_labels(
    file: Path, tmp_path: Path, name: str, method: str, options: dict[str, Any]
) -> None:
    problem = table(file, name)
    run = train(problem, method, 0, tmp_path, recipe=RECIPE, method_options=options, threads=1)
    assert run.result.steps == 42 // 8
    assert all(math.isfinite(value) for value in run.result.test)


def test_the_command_line_takes_an_architecture(file: Path, tmp_path: Path) -> None:
    command = [
        *("run", "table", "--csv", str(file), "--targets", "sum,product", "--method", "ntkmtl-sr"),
        *("--problem-option", "architecture=mmoe"),
        *("--problem-option", 'architecture_options={"experts": 2}'),
        *("--epochs", "1", "--batch-size", "8", "--out", str(tmp_path / "runs"), "--json"),
    ]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    (config,) = (tmp_path / "runs").rglob("config.json")
    written = json.loads(config.read_text())["problem_options"]["network"]["architecture"]
    assert written == {"name": "mmoe", "experts": 2}
