"""A problem that trains in a moment: three regressions from one input, and ways to go wrong."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems.base import Metric, MultiTaskModel, Problem, Recipe, Split

TASKS = ("a", "b", "c")
SIZES = {"train": 96, "val": 24, "test": 24}


class ToyModel(MultiTaskModel):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.1))
        self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(heads))

    def represent(self, batch: Any) -> Tensor:
        return self.trunk(batch[0])

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        views = [features] * len(self.heads) if isinstance(features, Tensor) else features
        return [head(z) for head, z in zip(self.heads, views, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.trunk.parameters()


class Toy(Problem):
    """Options: ``data_seed``; ``poison``, a task whose loss becomes NaN in the third epoch of
    multi-task training; ``pause``, seconds per batch; ``crash``, a file: the first run of
    seed 1 that finds it absent makes it and ends its process."""

    name = "toy"
    summary = "Three small regressions"
    recipe = Recipe(
        epochs=4, batch_size=16, learning_rate=0.02, minibatches=2, description="Four epochs."
    )
    tasks = TASKS
    metrics = (
        Metric("a", "a", "eV"),
        Metric("b", "b"),
        Metric("corr", "c", higher_is_better=True, label="ρ"),
    )
    made: ClassVar[int] = 0

    def __init__(
        self, data_seed: int = 0, poison: str = "", pause: float = 0.0, crash: str = ""
    ) -> None:
        if data_seed < 0:
            raise ValueError(f"data_seed must not be negative. Found {data_seed}.")
        type(self).made += 1
        self.data_seed, self.poison, self.pause, self.crash = data_seed, poison, pause, crash
        self.batches = 0
        self.data = {}
        for number, (split, size) in enumerate(SIZES.items()):
            generator = torch.Generator().manual_seed(100 * data_seed + number)
            x = torch.randn(size, 5, generator=generator)
            y = torch.stack([x[:, 0] - x[:, 1], 10 * (x[:, 2] * x[:, 3]), x.sum(1).sin()], dim=1)
            self.data[split] = (x, y)

    @property
    def options(self) -> dict[str, Any]:
        return {"data_seed": self.data_seed, "poison": self.poison}

    def size(self, split: Split) -> int:
        return SIZES[split]

    def batch(self, split: Split, indices: Tensor) -> Any:
        if self.pause:
            time.sleep(self.pause)
        x, y = self.data[split]
        self.batches += split == "train"
        return x[indices], y[indices], bool((indices == 0).any())

    def model(self, tasks: Sequence[str] | None = None) -> ToyModel:
        self.batches = 0
        return ToyModel(len(tasks or TASKS))

    def losses(
        self, outputs: Sequence[Tensor], batch: Any, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        if self.crash and tasks is None and torch.initial_seed() == 1:
            with contextlib.suppress(FileExistsError):
                Path(self.crash).touch(exist_ok=False)
                os._exit(7)
        found: dict[str, Tensor | None] = {}
        for task, output in zip(tasks or TASKS, outputs, strict=True):
            target = batch[1][:, TASKS.index(task)]
            loss = (output[:, 0] - target).square().mean()
            if task == self.poison and tasks is None and self.batches > 14:
                loss = loss * float("nan")
            # The second task has no labels in one batch of each epoch.
            found[task] = None if task == "b" and tasks is None and batch[2] else loss
        return found

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        x, y = self.data[split]
        training = model.training
        model.eval()
        with torch.no_grad():
            outputs = model.predict(model.represent((x, y)))
        model.train(training)
        values = []
        for task, output in zip(tasks or TASKS, outputs, strict=True):
            target = y[:, TASKS.index(task)]
            if task == "c":
                # From 0 to 1: Delta-m wants metrics that are positive.
                both = torch.stack([output[:, 0], target])
                values.append((1 + torch.corrcoef(both)[0, 1]) / 2)
            else:
                values.append((output[:, 0] - target).abs().mean())
        return torch.stack(values).double()
