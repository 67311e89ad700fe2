"""What problems with architectures must do in training and on the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.problems.base import Problem, Split
from ntkmtl.bench.training import train

SETTINGS: dict[str, dict[str, Any]] = {
    "hard": {},
    "cross-stitch": {},
    "mmoe": {"experts": 3},
    "cgc": {"shared_experts": 2, "task_experts": 1},
    "ple": {"shared_experts": 1, "task_experts": 2},
    "dselect-k": {"experts": 4},
}
"""Settings that are not the defaults, by architecture."""


def check_exact_kernel(
    problem: Problem, folder: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """The first step's eigenvalues are squared gradients of the shared parameters."""
    seen: list[Any] = []
    kind = type(problem)
    batch_of = kind.batch

    def watched(self: Any, split: Split, indices: Tensor) -> Any:
        seen.append(batch_of(self, split, indices))
        return seen[-1]

    monkeypatch.setattr(kind, "batch", watched)
    done = train(
        problem,
        "ntkmtl",
        5,
        folder,
        recipe=dataclasses.replace(
            problem.recipe, epochs=1, batch_size=batch_size, tested_epochs=1
        ),
        method_options={"minibatches": 1},
        threads=1,
    )
    torch.manual_seed(5)
    model = problem.model()
    losses = problem.losses(model.predict(model.represent(seen[0])), seen[0])
    shared = list(model.shared_parameters())
    expected = []
    for loss in losses.values():
        assert loss is not None
        found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        expected.append(sum(float(g.double().square().sum()) for g in found if g is not None))
    assert done.steps.eigenvalues is not None
    assert done.steps.eigenvalues[0].tolist() == pytest.approx(expected, rel=1e-4)


def check_command(problem: str, data: Path, out: Path, batch_size: int) -> None:
    """``ntkmtl run`` takes an architecture with a setting, and the run says so."""
    command = [
        *("run", problem, "--recipe", "small", "--data", str(data), "--method", "ntkmtl-sr"),
        *("--problem-option", "architecture=mmoe"),
        *("--problem-option", 'architecture_options={"experts": 2}'),
        *("--epochs", "1", "--batch-size", str(batch_size), "--out", str(out), "--json"),
    ]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    (config,) = out.rglob("config.json")
    written = json.loads(config.read_text())["problem_options"]["architecture"]
    assert written == {"name": "mmoe", "experts": 2}
