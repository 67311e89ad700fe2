"""Studies of recorded kernels for tests of the page that shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ntkmtl.analysis import Recorder, Snapshot
from ntkmtl.bench.report._analysis import Study, study_of
from ntkmtl.bench.runs import RunConfig, RunMetric
from ntkmtl.kernel import ExtendedNTK


def study(
    name: str = "p",
    tasks: tuple[str, ...] = ("a", "b", "c"),
    steps: int = 12,
    methods: Sequence[str] | None = None,
) -> Study:
    """Return a study of random kernels that shrink, recorded at every tenth step.

    Args:
        name: Of the problem, and of the second method.
        tasks: Names of the tasks.
        steps: Number of records.
        methods: ``"ls"`` and ``name`` if None.
    """
    config = RunConfig(
        problem=name,
        problem_class="m:C",
        problem_options={},
        method="",
        method_options={},
        seed=0,
        recipe={
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 0.1,
            "minibatches": 2,
            "reduced": True,
            "description": name,
        },
        tasks=tasks,
        metrics=tuple(RunMetric(task, task) for task in tasks),
        sizes={"train": 1, "val": 1, "test": 1},
        parameters=10,
        versions={},
        hardware={},
    )
    recorded = []
    for method in methods or ("ls", name):
        recorder = Recorder(10, source="exact")
        generator = torch.Generator().manual_seed(len(method))
        k, n = len(tasks), 2
        for step in range(steps):
            rows = torch.randn(k * n, 9, dtype=torch.float64, generator=generator)
            ones = torch.ones(k, dtype=torch.float64)
            weights = ones if method == "ls" else 1 / (1 + torch.arange(k).double())
            kernel = ExtendedNTK((rows @ rows.T).reshape(k, n, k, n) * math.exp(-step / 5))
            recorder(Snapshot(10 * step, tasks, tuple(range(k)), ones, weights, kernel))
        recorded.append((replace(config, method=method), recorder))
    return study_of(recorded, notes=[name])
