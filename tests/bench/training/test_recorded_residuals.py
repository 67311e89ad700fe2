"""Kernels of residuals in the records of runs."""

from __future__ import annotations

import pytest
import torch

from ntkmtl.analysis import residual_ntk
from ntkmtl.bench import problems
from ntkmtl.bench.training import RunSpec
from ntkmtl.bench.training.comparison import changed_recipe
from ntkmtl.bench.training.learner import Learner
from ntkmtl.bench.training.loop import TrainingLoop
from ntkmtl.bench.training.spec import run_identity


@pytest.mark.parametrize("name", ["pinn-burgers", "xtb"])
def test_a_record_holds_the_kernels_of_the_residuals_before_each_step(name: str) -> None:
    problem = problems.create(name)
    recipe = changed_recipe(problem.recipe, epochs=1)
    spec = RunSpec(method="ls", seed=0, recipe=recipe, record={"every": 2, "source": "exact"})
    loop = TrainingLoop(
        Learner(problem, spec, run_identity(problem, "ls", 0, recipe=recipe)), threads=1
    )
    learner = loop.learner
    rows = torch.randperm(problem.size("train"), generator=torch.Generator().manual_seed(0))
    batch = problem.batch("train", rows[: problem.residual_samples])
    for number, indices in zip(range(3), loop.batches(), strict=False):
        outputs = learner.model.predict(learner.model.represent(batch))
        found = residual_ntk(problem.task_residuals(outputs, batch), learner.model.parameters())
        loop.train_step(indices)
        assert learner.recorder is not None
        if number % 2 == 0:
            points = torch.tensor(found.points)
            for name, values in (
                ("residual_traces", found.traces),
                ("residual_eigenvalues", found.max_eigenvalues),
            ):
                torch.testing.assert_close(learner.recorder[name][-1], values / points)
    assert len(learner.recorder) == 2
