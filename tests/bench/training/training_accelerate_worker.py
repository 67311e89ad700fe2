"""Trainings for the tests of devices, precisions and processes, and two processes that train."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from toy_problem import Toy

from ntkmtl.bench.problems.base import MultiTaskModel, Recipe, Split
from ntkmtl.bench.problems.qm9_mini import FeatureBatch, QM9Mini
from ntkmtl.bench.runs.folder import read_checkpoint
from ntkmtl.bench.training import Run, RunInterrupted, train


class SmallQM9(QM9Mini):
    """Some molecules of qm9-mini in float64, so that rounding hides nothing."""

    recipe = replace(QM9Mini.recipe, epochs=2, batch_size=60)

    def size(self, split: Split) -> int:
        return {"train": 240, "val": 60, "test": 60}[split]

    def batch(self, split: Split, indices: Tensor) -> FeatureBatch:
        return FeatureBatch(*(part.double() for part in super().batch(split, indices)))

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        return super().model(tasks).double()

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> Tensor:
        batch = self.batch(split, torch.arange(self.size(split)))
        model.eval()
        with torch.no_grad():
            outputs = torch.cat(model.predict(model.represent(batch)), dim=1)
        model.train()
        return (outputs - batch.targets).abs().mean(0)


class DryToy(Toy):
    """Without dropout, and with labels everywhere; ``bad`` names samples whose task c is NaN."""

    def __init__(self, bad: int = -1, gradient: bool = False) -> None:
        super().__init__()
        self.bad, self.gradient = bad, gradient

    def batch(self, split: Split, indices: Tensor) -> Any:
        x, y = self.data[split]
        return x[indices], y[indices], bool((indices == self.bad).any())

    def model(self, tasks: Sequence[str] | None = None) -> Any:
        model = super().model(tasks)
        model.trunk[2].p = 0.0
        return model

    def losses(
        self, outputs: Sequence[Tensor], batch: Any, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        x, y, bad = batch
        found = super().losses(outputs, (x, y, False), tasks)
        if bad and found["c"] is not None:
            # A root at 0 has a value and no derivative.
            again = (outputs[2] * 0.0).square().sum().sqrt()
            found["c"] = found["c"] + (again if self.gradient else again * float("nan"))
        return found


def reaches(steps: Iterator[int], last: int) -> bool:
    return next(steps) == last


def stop_at(step: int) -> Any:
    return functools.partial(reaches, iter(range(1, step + 1)), step)


def stopped(problem: Any, method: str, folder: Path, step: int, **options: Any) -> dict[str, Any]:
    """Train up to a step and return the checkpoint, read by whoever can see it."""
    try:
        train(problem, method, 0, folder, threads=1, should_stop=stop_at(step), **options)
    except RunInterrupted:
        return read_checkpoint(folder / "checkpoint.pt")
    raise AssertionError("the run was not stopped")


def refused(problem: Any, method: str, folder: Path, recipe: Recipe) -> str:
    try:
        train(problem, method, 0, folder, threads=1, recipe=recipe)
    except ValueError as error:
        return str(error)
    raise AssertionError("the run was not refused")


METHODS = ("ls", "ntkmtl-sr", "ntkmtl", "uw")


def options(method: str) -> dict[str, Any]:
    return {"minibatches": 4} if method == "ntkmtl-sr" else {}


def numbers(run: Run) -> dict[str, Any]:
    return {
        "test": list(run.result.test),
        "val": [list(epoch.val) for epoch in run.history],
        "losses": [list(epoch.train_losses) for epoch in run.history],
        "weights": torch.from_numpy(run.steps.weights),
        "skipped": run.result.skipped_steps,
        "hardware": dict(run.config.hardware),
    }


def trained(rank: int, folder: Path) -> dict[str, Any]:
    """Train everything that the tests look at."""
    found: dict[str, Any] = {}
    small = SmallQM9()
    for method in METHODS:
        settings = {"method_options": options(method)}
        stopped(small, method, folder / method, 5, **settings)
        found[method] = numbers(train(small, method, 0, folder / method, threads=1, **settings))
        whole = train(small, method, 0, folder / f"{method}-whole", threads=1, **settings)
        found[f"{method}-whole"] = numbers(whole)
        found[f"{method}-state"] = stopped(small, method, folder / f"{method}-6", 6, **settings)
    parts = replace(small.recipe, accumulate=2)
    found["parts"] = stopped(
        small, "ntkmtl-sr", folder / "parts", 6, recipe=parts, method_options={"minibatches": 2}
    )
    # The second task has no label in one process's slice of one batch of each epoch.
    found["missing"] = numbers(train(Toy(), "ls", 0, folder / "missing", threads=1))
    skip = replace(DryToy.recipe, on_nonfinite="skip")
    for name, gradient in (("loss", False), ("gradient", True)):
        problem = DryToy(bad=7, gradient=gradient)
        try:
            train(problem, "ls", 0, folder / name, threads=1)
        except FloatingPointError as error:
            found[name] = str(error)
        run = train(problem, "ls", 0, folder / f"{name}-skip", threads=1, recipe=skip)
        found[f"{name}-skip"] = numbers(run)
    found["alone"] = refused(small, "graddrop", folder / "alone", small.recipe)
    found["odd"] = refused(small, "ls", folder / "odd", replace(small.recipe, batch_size=45))
    return found


def meet(rank: int, folder: str, work: Callable[[], Any]) -> None:
    """Meet the other process in a file, work, and leave what was found in ``RANK.pt``."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    # They meet in a file: a port that was free a moment ago may be taken.
    place = (Path(folder) / "meet").as_uri()
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    try:
        torch.save(work(), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def main(rank: int, folder: str) -> None:
    """Train what the tests look at."""
    meet(rank, folder, lambda: trained(rank, Path(folder)))
