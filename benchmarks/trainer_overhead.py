"""What the bench's trainer adds to a step, against the same loop by hand.

``python benchmarks/trainer_overhead.py`` prints, per method, milliseconds per step in
:func:`ntkmtl.bench.training.train` and in a loop of Balancer and Adam, turn about, and the median
ratio: ten regressions on one network of 1.3 million shared parameters, where moco, db-mtl and
excess-mtl keep ten gradients (52 MB) as their state.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ntkmtl import Balancer
from ntkmtl.bench.problems.base import Metric, MultiTaskModel, Problem, Recipe, Split, batches
from ntkmtl.bench.training import train

TASKS = tuple(f"t{i}" for i in range(10))
STEPS = 20


class Wide(MultiTaskModel):
    """Two hidden layers and ten linear heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 1100), nn.ReLU(), nn.Linear(1100, 1100), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(1100, 1) for _ in TASKS)

    def represent(self, batch: Any) -> Tensor:
        """See the base class."""
        features: Tensor = self.trunk(batch[0])
        return features

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """See the base class."""
        views = [features] * len(TASKS) if isinstance(features, Tensor) else features
        return [head(z) for head, z in zip(self.heads, views, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """See the base class."""
        return self.trunk.parameters()


class TenTasks(Problem):
    """Ten regressions."""

    name = "ten-tasks"
    summary = "Ten regressions on 1.3 million shared parameters"
    tasks = TASKS
    metrics = tuple(Metric(task, task) for task in TASKS)
    recipe = Recipe(epochs=1, batch_size=64, learning_rate=1e-4, minibatches=1)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64 * STEPS, 64, generator=generator)
        self.y = torch.randn(64 * STEPS, len(TASKS), generator=generator)

    @property
    def options(self) -> dict[str, Any]:
        """See the base class."""
        return {}

    def size(self, split: Split) -> int:
        """See the base class."""
        return len(self.x) if split == "train" else 64

    def batch(self, split: Split, indices: Tensor) -> Any:
        """See the base class."""
        return self.x[indices], self.y[indices]

    def model(self, tasks: Sequence[str] | None = None) -> Wide:
        """See the base class."""
        return Wide()

    def losses(
        self, outputs: Sequence[Tensor], batch: Any, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """See the base class."""
        return {
            task: (output[:, 0] - batch[1][:, i]).square().mean()
            for i, (task, output) in enumerate(zip(TASKS, outputs, strict=True))
        }

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """See the base class."""
        return torch.ones(len(TASKS), dtype=torch.float64)


def by_trainer(problem: TenTasks, method: str, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = train(problem, method, 0, Path(folder) / "run", threads=threads)
    return run.result.train_seconds / run.result.steps


def by_hand(problem: TenTasks, method: str, threads: int) -> float:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = problem.model()
    balancer = Balancer(method, tasks=list(TASKS))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    order = list(batches(len(problem.x), 64, torch.Generator().manual_seed(0)))
    started = time.perf_counter()
    for indices in order:
        optimizer.zero_grad(set_to_none=True)
        batch = problem.batch("train", indices)
        z = model.represent(batch)
        balancer.backward(problem.losses(model.predict(z), batch), features=z)
        optimizer.step()
    return (time.perf_counter() - started) / len(order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="ls,moco,db-mtl,excess-mtl")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    problem = TenTasks()
    for method in asked.methods.split(","):
        pairs = [
            (by_trainer(problem, method, asked.threads), by_hand(problem, method, asked.threads))
            for _ in range(asked.turns)
        ]
        ours, plain = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{method:12} trainer {ours:7.1f} ms, by hand {plain:7.1f} ms, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
