"""What is kept of a run while it is trained: losses, weights, eigenvalues, epochs; trackers."""

from __future__ import annotations

import math
import os
import shutil
import statistics
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ntkmtl.bench.runs import MAX_STEP_ROWS, Epoch, Steps
from ntkmtl.errors import MissingExtraError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ntkmtl.bench.training.learner import Learner
    from ntkmtl.bench.training.step import StepPart

__all__ = ["TRACKERS", "TrainingLog", "check_tracker"]

TRACKERS = {
    "tensorboard": ("tensorboard", "pip install 'ntkmtl[tracking]'"),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow"),
    "trackio": ("trackio", "pip install trackio"),
}
"""Names of trackers, the module that each needs, and what installs it."""


class TrainingLog:
    """Keeps the mean losses of an epoch, rows of weights and eigenvalues, and finished epochs.

    Of the steps at most :data:`MAX_STEP_ROWS` rows are kept.

    Args:
        learner: What is trained.

    Attributes:
        history: The epochs so far.
        tested: Test metrics of the epochs that count.
        tracker: One of accelerate's, None without.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.tasks = learner.tasks
        self.stride = math.ceil(learner.total_steps / MAX_STEP_ROWS)
        self.history: list[Epoch] = []
        self.tested: list[tuple[float, ...]] = []
        self.epoch_seconds = self.epoch_cpu_seconds = 0.0
        self.row_steps: list[int] = []
        self.row_weights: list[Tensor] = []
        self.row_eigenvalues: list[Tensor | None] = []
        self.tracker: Any = None
        self._clear_losses()

    def _clear_losses(self) -> None:
        self.loss_sums = [0.0] * len(self.tasks)
        self.loss_counts = [0] * len(self.tasks)

    def track(self, name: str, folder: Path, *, resumed: bool) -> None:
        """Log by a tracker from now on.

        Args:
            name: Its name.
            folder: The run's folder.
            resumed: Whether the run was begun before.
        """
        if not resumed:
            # Logs of a run that was replaced would be mixed with this one's.
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        identity = self.learner.identity
        about = {key: identity[key] for key in ("problem", "method", "seed")}
        title = " ".join(map(str, about.values()))
        self.tracker = _started_tracker(name, folder, {**about, **identity["recipe"]}, title)

    # ------------------------------------------------------------------ steps

    def add_step(self, number: int, parts: Sequence[StepPart]) -> None:
        """Add a step; one that was skipped has no parts."""
        means = self._add_losses(parts)
        if number % self.stride:
            return
        weights = _mean_row([part.balanced.weights for part in parts])
        read = [p.balanced.eigenvalues for p in parts if p.balanced.eigenvalues is not None]
        self.row_steps.append(number)
        self.row_weights.append(torch.zeros(len(self.tasks)) if weights is None else weights)
        self.row_eigenvalues.append(_mean_row(read))
        if self.tracker is not None:
            self._track_step(number, means)

    def _add_losses(self, parts: Sequence[StepPart]) -> list[float | None]:
        """Add the losses of a step to the epoch's; return their means over its parts."""
        sums = [0.0] * len(self.tasks)
        counts = [0] * len(self.tasks)
        for part in parts:
            if part.losses:
                values = torch.stack([loss.reshape(()) for loss in part.losses.values()]).tolist()
                for position, value in zip(part.losses, values, strict=True):
                    sums[position] += value
                    counts[position] += 1
        means = [total / n if n else None for total, n in zip(sums, counts, strict=True)]
        for position, mean in enumerate(means):
            if mean is not None:
                self.loss_sums[position] += mean
                self.loss_counts[position] += 1
        return means

    def _track_step(self, number: int, losses: Sequence[float | None]) -> None:
        values = {f"loss/{t}": loss for t, loss in zip(self.tasks, losses, strict=True)}
        for kind, row in (
            ("weight", self.row_weights[-1]),
            ("eigenvalue", self.row_eigenvalues[-1]),
        ):
            if row is not None:
                for task, value in zip(self.tasks, row.tolist(), strict=True):
                    values[f"{kind}/{task}"] = value
        values["learning_rate"] = self.learner.learning_rate.last
        known = {key: value for key, value in values.items() if value is not None}
        self.tracker.log({k: v for k, v in known.items() if math.isfinite(v)}, step=number)

    # ------------------------------------------------------------------ epochs

    def end_epoch(self, val: Sequence[float], eval_seconds: float, step: int) -> None:
        """Close an epoch; every process calls it.

        Args:
            val: Metrics after the epoch.
            eval_seconds: Time of their evaluation.
            step: Number of the epoch's last step.
        """
        learner = self.learner
        sums, counts = learner.group.sums(self.loss_sums), learner.group.sums(self.loss_counts)
        means = [
            total / count if count else None for total, count in zip(sums, counts, strict=True)
        ]
        self.history.append(
            Epoch(
                epoch=len(self.history),
                train_losses=tuple(means),
                val=tuple(val),
                learning_rate=learner.learning_rate.last,
                train_seconds=self.epoch_seconds,
                eval_seconds=eval_seconds,
                # Elsewhere the main thread waits for the device or for other processes.
                cpu_seconds=self.epoch_cpu_seconds
                if learner.device.type == "cpu" and learner.group.size == 1
                else None,
            )
        )
        if self.tracker is not None:
            names = [f"{learner.split}/{metric.name}" for metric in learner.metrics]
            self.tracker.log(dict(zip(names, val, strict=True)), step=step)
        self._clear_losses()
        self.epoch_seconds = self.epoch_cpu_seconds = 0.0

    def cpu_share(self) -> float | None:
        """Return the median over epochs of the share of time with a core, None if not known."""
        shares = [
            epoch.cpu_seconds / epoch.train_seconds
            for epoch in self.history
            if epoch.cpu_seconds is not None and epoch.train_seconds > 0
        ]
        return statistics.median(shares) if shares else None

    def steps(self) -> Steps:
        """Return the rows so far as arrays."""
        read = self.row_eigenvalues
        blank = torch.full((len(self.tasks),), math.nan)
        return Steps(
            step=np.array(self.row_steps, dtype=np.int64),
            weights=torch.stack(self.row_weights).numpy()
            if self.row_weights
            else np.zeros((0, len(self.tasks)), dtype=np.float32),
            eigenvalues=None
            if all(row is None for row in read)
            else torch.stack([blank if row is None else row for row in read]).numpy(),
        )

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, apart from the losses of the epoch so far."""
        steps = self.steps()
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "tested": [list(values) for values in self.tested],
            "epoch_seconds": self.epoch_seconds,
            "epoch_cpu_seconds": self.epoch_cpu_seconds,
            # One tensor per kind, not one per row: a file of thousands of small tensors is slow.
            "row_steps": torch.from_numpy(steps.step),
            "weights": torch.from_numpy(steps.weights),
            "eigenvalues": None
            if steps.eigenvalues is None
            else torch.from_numpy(steps.eigenvalues),
        }

    def load_state_dict(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Resume.

        Args:
            state: What :meth:`state_dict` returned.
            own: ``loss_sums`` and ``loss_counts`` of this process.
        """
        self.history = [
            Epoch(**{**e, "train_losses": tuple(e["train_losses"]), "val": tuple(e["val"])})
            for e in state["history"]
        ]
        self.tested = [tuple(values) for values in state["tested"]]
        self.epoch_seconds = state["epoch_seconds"]
        self.epoch_cpu_seconds = state["epoch_cpu_seconds"]
        self.loss_sums = list(own["loss_sums"])
        self.loss_counts = list(own["loss_counts"])
        self.row_steps = state["row_steps"].tolist()
        self.row_weights = [row.clone() for row in state["weights"]]
        read = state["eigenvalues"]
        self.row_eigenvalues = (
            [None] * len(self.row_steps) if read is None else [row.clone() for row in read]
        )


def _row(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32).clone()


def _mean_row(rows: Sequence[Tensor]) -> Tensor | None:
    """Return the mean of rows where they hold numbers, None of none."""
    if not rows:
        return None
    return _row(rows[0]) if len(rows) == 1 else torch.stack([_row(r) for r in rows]).nanmean(0)


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is unknown or not installed."""
    if name is None:
        return
    if name not in TRACKERS:
        raise ValueError(f"tracker must be one of {', '.join(TRACKERS)}. Found {name!r}.")
    module, install = TRACKERS[name]
    if find_spec(module) is None:
        raise MissingExtraError(
            f"the tracker {name} needs {module}, which is not installed. "
            f"Install it with: {install}",
            name=module,
        )


def _started_tracker(name: str, folder: Path, config: Mapping[str, Any], title: str) -> Any:
    """Return one of accelerate's trackers, which logs numbers of a run.

    Nothing leaves the machine unless the user's own settings say so: W&B runs offline where
    ``WANDB_MODE`` is not set, MLflow writes into the run's folder where ``MLFLOW_TRACKING_URI`` is
    not set, TensorBoard writes there, and trackio into its own folder.

    Args:
        name: A key of :data:`TRACKERS`, installed.
        folder: The run's folder.
        config: What determines the run, flat.
        title: Name of the run.
    """
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    except ImportError as error:
        raise missing_extra("a tracker", "bench", error) from error
    folder.mkdir(parents=True, exist_ok=True)
    project = "ntkmtl"
    options: dict[str, Any] = {}
    if name == "tensorboard":
        project = "tensorboard"
        options = {"logging_dir": str(folder)}
    elif name == "wandb":
        options = {"dir": str(folder), "name": title}
        if "WANDB_MODE" not in os.environ:
            options["mode"] = "offline"
    elif name == "mlflow":
        if "MLFLOW_TRACKING_URI" not in os.environ:
            import mlflow

            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
            options = {"logging_dir": (folder / "mlartifacts").resolve().as_uri()}
        options["run_name"] = title
    else:
        options = {"name": title}
    tracker: Any = LOGGER_TYPE_TO_CLASS[name](project, **options)
    if hasattr(tracker, "start"):
        tracker.start()
    tracker.store_init_configuration(
        {
            key: value if isinstance(value, int | float | str) else str(value)
            for key, value in config.items()
        }
    )
    return tracker
