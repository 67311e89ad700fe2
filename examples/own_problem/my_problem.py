"""A problem in one file: copy it, and put your data, network and losses in.

ntkmtl compare examples/own_problem/my_problem.py:MyProblem --seeds 2 --epochs 5
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems import Metric, MultiTaskModel, Problem, Recipe, Split

SIZES = {"train": 512, "val": 128, "test": 128}


class MyModel(MultiTaskModel):
    """A trunk that all tasks share, and one head per task."""

    def __init__(self, outputs: Sequence[int]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(32, size) for size in outputs)

    def represent(self, batch: Any) -> Tensor:
        """Return the features z, shape (samples, 32)."""
        inputs, _, _ = batch
        return self.trunk(inputs)

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return one output per head; ``features`` is z, or one view of z per head."""
        views = [features] * len(self.heads) if isinstance(features, Tensor) else features
        return [head(z) for head, z in zip(self.heads, views, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trunk's parameters."""
        return self.trunk.parameters()


class MyProblem(Problem):
    """One regression and one classification from the same six numbers, some labels missing.

    Every argument of ``__init__`` is an option: ``--problem-option noise=0.5``.
    """

    name = "my-problem"
    summary = "A regression and a classification from the same six numbers"
    tasks = ("height", "kind")
    metrics = (
        Metric("height", task="height", unit="m", label="height RMSE"),
        Metric("kind", task="kind", higher_is_better=True, label="kind accuracy"),
    )
    recipe = Recipe(epochs=20, batch_size=32, learning_rate=3e-3, description="20 epochs.")
    outputs = {"height": 1, "kind": 3}  # noqa: RUF012

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = noise
        self.data = {}
        for number, (split, size) in enumerate(SIZES.items()):
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(size, 6, generator=generator)
            height = x[:, 0] * x[:, 1] + noise * torch.randn(size, generator=generator)
            kind = x[:, 2:5].argmax(dim=1)
            # A fifth of the training heights is unknown: NaN marks a missing label.
            if split == "train":
                height[::5] = torch.nan
            self.data[split] = (x, height, kind)

    @property
    def options(self) -> dict[str, Any]:
        """Whatever changes data, network or losses: single-task baselines are kept under it."""
        return {"noise": self.noise}

    def size(self, split: Split) -> int:
        """Return the number of samples in a split."""
        return SIZES[split]

    def batch(self, split: Split, indices: Tensor) -> Any:
        """Return a batch, anything that model and losses understand."""
        return tuple(part[indices] for part in self.data[split])

    def model(self, tasks: Sequence[str] | None = None) -> MyModel:
        """Build a new network, with heads for some tasks or for all."""
        return MyModel([self.outputs[task] for task in tasks or self.tasks])

    def losses(
        self, outputs: Sequence[Tensor], batch: Any, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return one loss per task, None where no sample of the batch has a label."""
        _, height, kind = batch
        found: dict[str, Tensor | None] = {}
        for task, output in zip(tasks or self.tasks, outputs, strict=True):
            if task == "kind":
                found[task] = functional.cross_entropy(output, kind)
            else:
                known = ~height.isnan()
                error = (output[:, 0] - height)[known]
                found[task] = error.square().mean() if known.any() else None
        return found

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return one number per metric, in the order of ``metrics``."""
        batch = self.batch(split, torch.arange(self.size(split)))
        _, height, kind = batch
        training = model.training
        model.eval()
        with torch.no_grad():
            outputs = model.predict(model.represent(batch))
        model.train(training)
        by_task = dict(zip(tasks or self.tasks, outputs, strict=True))
        values = []
        for task in self.tasks:
            if task not in by_task:
                continue
            if task == "kind":
                values.append((by_task[task].argmax(1) == kind).double().mean())
            else:
                known = ~height.isnan()
                error = by_task[task][:, 0].double() - height
                values.append(error[known].square().mean().sqrt())
        return torch.stack(values)
