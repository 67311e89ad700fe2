"""The epoch that is chosen on the validation split: its network is tested, kept and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ntkmtl.bench.problems.base import MultiTaskModel
from ntkmtl.bench.problems.table import Table
from ntkmtl.bench.runs import RunInterrupted
from ntkmtl.bench.training.trainer import train


class Watched(Table):
    """A table that notes what epochs are chosen by, and the test metrics at each of them."""

    def selection(self, model: MultiTaskModel, tasks: list[str] | None = None) -> float:
        value = super().selection(model, tasks)
        self.seen.append((value, tuple(self.evaluate(model, "test", tasks).tolist())))
        return value


@pytest.fixture
def problem(tmp_path: Path) -> Watched:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 6))
    noise = x[:, 0] + random.normal(size=60)
    rows = [
        ",".join(f"{v:.4f}" for v in row) + f",{y:.4f},{y * y:.4f}"
        for row, y in zip(x, noise, strict=True)
    ]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a,b,c,d,e,f,y,z", *rows]) + "\n")
    found = Watched(path, "y,z")
    found.seen = []
    return found


def test_the_best_epoch_is_tested_and_kept(problem: Watched, tmp_path: Path) -> None:
    recipe = replace(problem.recipe, epochs=30, learning_rate=0.02, weight_decay=0.0)
    run = train(problem, "ls", 0, tmp_path / "run", recipe=recipe, threads=1)
    values = [value for value, _ in problem.seen]
    best = int(np.argmin(values))
    # The data are noise to a good part: a later epoch is worse.
    assert best < 29
    assert run.result.epoch == best
    assert run.result.test == problem.seen[best][1]
    assert run.result.val == run.history[best].val
    from ntkmtl.bench import load

    kept = load(run.path, problem)
    assert tuple(problem.evaluate(kept.model, "test").tolist()) == run.result.test


def test_a_stopped_run_keeps_its_best_epoch(problem: Watched, tmp_path: Path) -> None:
    recipe = replace(problem.recipe, epochs=12, learning_rate=0.02)
    whole = train(problem, "ls", 0, tmp_path / "whole", recipe=recipe, threads=1)
    steps = iter(range(1_000))
    with pytest.raises(RunInterrupted):
        train(
            problem,
            "ls",
            0,
            tmp_path / "parts",
            recipe=recipe,
            threads=1,
            should_stop=lambda: next(steps) == 40,
        )
    parts = train(problem, "ls", 0, tmp_path / "parts", recipe=recipe, threads=1)
    assert (parts.result.test, parts.result.epoch) == (whole.result.test, whole.result.epoch)
    names = [path / "model.safetensors" for path in (whole.path, parts.path)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_weights_that_decay_are_other_weights(problem: Watched, tmp_path: Path) -> None:
    found = {}
    for decay in (0.0, 1.0):
        recipe = replace(problem.recipe, epochs=3, weight_decay=decay, chosen_epoch="last")
        run = train(problem, "ls", 0, tmp_path / f"run-{decay}", recipe=recipe, threads=1)
        assert run.result.epoch is None
        assert "epoch" not in json.loads((run.path / "result.json").read_text())
        found[decay] = run.result.test
    assert found[0.0] != found[1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"chosen_epoch": "best"}, "chosen_epoch must be one of last, validation"),
        ({"tested_epochs": 2}, "tested_epochs must be 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    problem: Watched, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    recipe = replace(problem.recipe, **changes)
    with pytest.raises(ValueError, match=message):
        train(problem, "ls", 0, tmp_path / "run", recipe=recipe)


def test_a_problem_is_judged_by_its_metrics_unless_it_says_otherwise(problem: Watched) -> None:
    from ntkmtl.bench.problems.base import Problem

    torch.manual_seed(0)
    model = problem.model()
    wanted = problem.evaluate(model, "val").log().mean()
    assert Problem.selection(problem, model) == pytest.approx(float(wanted), rel=1e-12)
