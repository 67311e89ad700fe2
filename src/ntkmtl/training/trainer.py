"""Training one network with one method and one seed."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
import warnings
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ntkmtl.analysis import Recorder
from ntkmtl.balance import Balancer
from ntkmtl.files import write_json
from ntkmtl.kernel import RememberInputs, branch
from ntkmtl.problems.base import Problem, Recipe, Split, batches
from ntkmtl.training.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from ntkmtl.training.environment import cores, hardware, reproducible, versions
from ntkmtl.training.recording import record_differences, record_settings
from ntkmtl.training.runs import (
    CHECKPOINT,
    CONFIG,
    FAILURE,
    FILES,
    HISTORY,
    MAX_STEP_ROWS,
    RECORD,
    RESULT,
    SCHEMA,
    SINGLE_TASK,
    STEPS,
    Epoch,
    Run,
    RunConfig,
    RunMetric,
    RunResult,
    Steps,
    canonical_json,
    differences,
    load_run,
    read_config,
    write_history,
    write_steps,
)
from ntkmtl.training.schedules import LearningRate, check_schedule, learning_rate_factor
from ntkmtl.training.scores import check_baseline, task_scores, validation_split
from ntkmtl.training.signals import stop_requests
from ntkmtl.weighting import spec

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "RunConflictError",
    "RunInterrupted",
    "learning_rate_factor",
    "run_identity",
    "steps_per_epoch",
    "train",
]


class RunConflictError(ValueError):
    """The folder of a run holds another run.

    Attributes:
        path: The folder.
        differences: One text per key that differs.
    """

    def __init__(self, path: str | os.PathLike[str], differences: Sequence[str]) -> None:
        self.path = Path(path)
        self.differences = list(differences)
        super().__init__(f"{path} holds another run: {'; '.join(differences)}")

    def __reduce__(self) -> tuple[type[RunConflictError], tuple[Path, list[str]]]:
        return (type(self), (self.path, self.differences))


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped on request at a step boundary; its checkpoint is written."""


def steps_per_epoch(problem: Problem, recipe: Recipe) -> int:
    """Return the number of whole batches in the training split.

    Raises:
        ValueError: The recipe makes no sense for the problem.
    """
    if recipe.epochs < 1:
        raise ValueError(f"epochs must be at least 1. Found {recipe.epochs}.")
    if recipe.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Found {recipe.batch_size}.")
    if not (math.isfinite(recipe.learning_rate) and recipe.learning_rate > 0):
        raise ValueError(f"learning_rate must be positive. Found {recipe.learning_rate}.")
    check_schedule(problem, recipe)
    size = problem.size("train")
    if size < recipe.batch_size:
        raise ValueError(
            f"batch_size must be at most {size}, the size of the training split. "
            f"Found {recipe.batch_size}."
        )
    return size // recipe.batch_size


def run_identity(
    problem: Problem,
    method: str,
    seed: int,
    *,
    recipe: Recipe | None = None,
    method_options: Mapping[str, Any] | None = None,
    single_task: str | None = None,
) -> dict[str, Any]:
    """Return what determines a run's numbers, as JSON values: ``config.json`` but for the place.

    Args:
        problem: What is trained.
        method: Name of the method.
        seed: Seed, not negative.
        recipe: How long it is trained; the problem's own if None.
        method_options: Options given to :class:`ntkmtl.Balancer`.
        single_task: The task of a single-task baseline, whose method is ``"stl"``.

    Raises:
        ValueError: The parts do not fit each other, or an option is no JSON value.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative. Found {seed}.")
    if (method == SINGLE_TASK) != (single_task is not None):
        raise ValueError(
            f"method {SINGLE_TASK!r} trains one task, the others all of them. "
            f"Found method={method!r} with single_task={single_task!r}."
        )
    if single_task is not None and single_task not in problem.tasks:
        raise ValueError(
            f"{problem.name} has no task {single_task!r}; it has {', '.join(problem.tasks)}."
        )
    chosen = recipe or problem.recipe
    steps_per_epoch(problem, chosen)
    kind = type(problem)
    identity = {
        "schema": SCHEMA,
        "problem": problem.name,
        "problem_class": f"{kind.__module__}:{kind.__qualname__}",
        "problem_options": dict(problem.options),
        "method": method,
        "method_options": dict(method_options or {}),
        "seed": seed,
        "recipe": asdict(chosen),
        "tasks": list(problem.tasks) if single_task is None else [single_task],
        "metrics": [
            asdict(metric)
            for metric in problem.metrics
            if single_task is None or metric.task == single_task
        ],
        "sizes": {split: problem.size(split) for split in _SPLITS},
    }
    try:
        found: dict[str, Any] = json.loads(canonical_json(identity))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the options of {problem.name} and {method} must be JSON values: {error}"
        ) from error
    return found


_SPLITS: tuple[Split, ...] = ("train", "val", "test")


def train(
    problem: Problem,
    method: str,
    seed: int,
    out_dir: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    method_options: Mapping[str, Any] | None = None,
    single_task: str | None = None,
    baseline: Sequence[float] | None = None,
    threads: int | None = None,
    checkpoint_seconds: float = 5.0,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Run:
    """Train one network and leave a run directory.

    The same arguments give the same numbers on the same machine with the same number of threads.
    A run that was stopped or killed goes on from its last checkpoint, with the threads it began
    with, and ends with the numbers of one that never was. A complete run is not trained again.

    The network of the last epoch is the one that is tested, or the means over the last few epochs
    are taken where the recipe says so: nothing is chosen by its results.

    Args:
        problem: What is trained.
        method: Name of the method, given to :class:`ntkmtl.Balancer`.
        seed: Seed of the initial weights, of the order of the data, and of all that is drawn.
        out_dir: The run's own folder.
        recipe: How long it is trained; the problem's own if None.
        method_options: Options given to :class:`ntkmtl.Balancer`.
        single_task: The task of a single-task baseline, whose method is ``"stl"``.
        baseline: For methods that are told scores after each epoch
            (:attr:`ntkmtl.weighting.Weighting.needs_scores`): what the single-task networks of the
            same seed came to on the validation split, one number per metric, as
            :func:`ntkmtl.training.scores.read_baseline` reads it. A run that goes on keeps the one
            that it began with. Other methods do not look at it.
        threads: Threads that torch computes with, all cores if None.
        checkpoint_seconds: Least time between two checkpoints. Where writing one takes long, they
            are spaced so that they take at most a twentieth of the time.
        progress: Called after every step with the steps done and their total number.
        should_stop: Asked after every step; True writes a checkpoint and stops. If None, Ctrl-C and
            SIGTERM do so.
        record: ``every``, ``source`` and ``minibatches`` of a record of the kernel over training,
            written to ``record.json``; see :func:`ntkmtl.training.recording.record_settings`. None
            for no record. It changes none of the run's numbers.

    Returns:
        The complete run.

    Raises:
        RunConflictError: ``out_dir`` holds a run with another configuration.
        RunFileError: A file in ``out_dir`` is damaged.
        RunInterrupted: The run was stopped on request.
        ValueError: The parts do not fit each other, or the method needs a baseline and got none.
        NonFiniteError: A loss or gradient became NaN or infinite.
        FloatingPointError: A metric became NaN or infinite.
    """
    folder = Path(out_dir)
    identity = run_identity(
        problem,
        method,
        seed,
        recipe=recipe,
        method_options=method_options,
        single_task=single_task,
    )
    settings = record_settings(record, Recipe(**identity["recipe"]))
    if (folder / CONFIG).exists():
        found = differences(read_config(folder / CONFIG).identity(), identity)
        if found:
            raise RunConflictError(folder, found)
        if (folder / RESULT).exists():
            found = record_differences(folder / RECORD, settings)
            if found:
                raise RunConflictError(folder, found)
            for name in (CHECKPOINT, FAILURE):
                (folder / name).unlink(missing_ok=True)
            return load_run(folder)
    else:
        # A result without a configuration is what is left of a run that was being removed.
        (folder / RESULT).unlink(missing_ok=True)
    _remove_leftovers(folder)

    checkpoint = _usable_checkpoint(folder, identity, settings)
    if checkpoint is not None:
        threads = checkpoint["threads"]
        baseline = checkpoint.get("baseline")
    with reproducible(threads or cores()):
        training = _Training(
            problem, identity, single_task, torch.get_num_threads(), settings, baseline
        )
        if checkpoint is not None:
            training.load_state_dict(checkpoint)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / CONFIG, training.config.to_json())
        if should_stop is not None:
            training.run(folder, checkpoint_seconds, progress, should_stop)
        else:
            with stop_requests() as requested:
                training.run(folder, checkpoint_seconds, progress, requested)
    return load_run(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left of files that it had not finished writing."""
    for name in FILES:
        for leftover in folder.glob(f".{name}.*.tmp"):
            leftover.unlink(missing_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)


def _usable_checkpoint(
    folder: Path, identity: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    path = folder / CHECKPOINT
    try:
        state = read_checkpoint(path)
        if (folder / CONFIG).exists():
            written = state.get("identity"), state.get("versions")
            recorded = state.get("record_settings")
            if written != (canonical_json(identity), versions()):
                why = f"{path}: was written by another version or for another run ({written[1]})"
            elif settings is not None and recorded != settings:
                why = f"{path}: was written with another record ({recorded})"
            else:
                return state
        else:
            why = f"{path}: stands without {CONFIG}"
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        why = str(error)
    warnings.warn(
        f"the checkpoint cannot be used, so the run starts again from its beginning. {why}",
        RuntimeWarning,
        stacklevel=3,
    )
    path.unlink()
    return None


def reruns_trunk(method: str, options: Mapping[str, Any]) -> bool:
    """Return whether a Balancer with these options needs to be given the trunk."""
    source = options.get("source", spec(method).defaults.get("source"))
    return source in ("probe", "auto")


class _Training:
    """The state of one training, and the loop over it."""

    def __init__(
        self,
        problem: Problem,
        identity: Mapping[str, Any],
        single_task: str | None,
        threads: int,
        record: Mapping[str, Any] | None = None,
        baseline: Sequence[float] | None = None,
    ) -> None:
        self.problem = problem
        self.identity = identity
        self.recipe = Recipe(**identity["recipe"])
        self.seed: int = identity["seed"]
        self.threads = threads
        # None, not all names: a problem may treat "all tasks" by a faster path.
        self.chosen = None if single_task is None else (single_task,)
        self.tasks: tuple[str, ...] = tuple(identity["tasks"])
        self.metrics = tuple(RunMetric(**metric) for metric in identity["metrics"])
        self.steps_per_epoch = steps_per_epoch(problem, self.recipe)
        self.total_steps = self.steps_per_epoch * self.recipe.epochs

        torch.manual_seed(self.seed)
        self.model = problem.model(self.chosen)
        self.record_settings = None if record is None else dict(record)
        self.recorder = None if record is None else Recorder(**record)
        options = dict(identity["method_options"])
        self.represent: Callable[[Any], Any] = self.model.represent
        if reruns_trunk(identity["method"], options):
            trunk = RememberInputs(self.model, "represent")
            options |= {"trunk": trunk, "shared": list(self.model.shared_parameters())}
            self.represent = trunk
        elif self.model.private_below:
            # Else the exact kernel would be that of all below the representations.
            options["shared"] = list(self.model.shared_parameters())
        self.balancer = Balancer(
            identity["method"], tasks=list(self.tasks), record=self.recorder, **options
        )
        self.scored = self.balancer.weighting.needs_scores
        self.baseline = self._checked(baseline) if self.scored else None
        self.split = validation_split(problem)
        self.config = RunConfig(
            **{
                **{key: value for key, value in identity.items() if key != "schema"},
                "tasks": self.tasks,
                "metrics": self.metrics,
            },
            parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            versions=versions(),
            hardware=hardware(threads),
            baseline=self.baseline,
        )
        self._make_optimizer()

        self.step = 0
        self.history: list[Epoch] = []
        self.tested: list[tuple[float, ...]] = []
        self.loss_sums = [0.0] * len(self.tasks)
        self.loss_counts = [0] * len(self.tasks)
        self.epoch_seconds = 0.0
        self.wall_seconds = 0.0
        self.row_steps: list[int] = []
        self.row_weights: list[Tensor] = []
        self.row_eigenvalues: list[Tensor | None] = []
        self.stride = math.ceil(self.total_steps / MAX_STEP_ROWS)

    def _checked(self, baseline: Sequence[float] | None) -> tuple[float, ...]:
        if baseline is None:
            raise ValueError(
                f"{self.balancer.method} is told after each epoch how each task performs against "
                "its single-task network: give baseline=, what those came to on the validation "
                "split, or use ntkmtl compare or ntkmtl run, which train them first"
            )
        check_baseline(baseline, self.metrics)
        return tuple(float(value) for value in baseline)

    def _make_optimizer(self) -> None:
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters())}]
        # Weights that are learned (uncertainty weighting) move with the network's learning rate.
        learned = list(self.balancer.parameters())
        if learned:
            groups.append({"params": learned})
        # Fused: one operation for all parameters, which is a fifth of a small network's step.
        self.optimizer = torch.optim.Adam(groups, lr=self.recipe.learning_rate, fused=True)
        self.learning_rate = LearningRate(
            self.recipe,
            self.optimizer,
            self.total_steps,
            self.metrics,
            self.problem.reference if self.chosen is None else None,
        )

    # -------------------------------------------------------------------------------------------
    # Steps

    def run(
        self,
        folder: Path,
        checkpoint_seconds: float,
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        started = time.monotonic() - self.wall_seconds
        next_checkpoint = time.monotonic() + checkpoint_seconds
        while self.step < self.total_steps:
            for indices in self._rest_of_epoch():
                self._train_step(indices)
                if progress is not None:
                    progress(self.step, self.total_steps)
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch()
                stop = should_stop()
                if stop or time.monotonic() >= next_checkpoint:
                    before = time.monotonic()
                    self.wall_seconds = before - started
                    write_checkpoint(folder / CHECKPOINT, self.state_dict())
                    now = time.monotonic()
                    next_checkpoint = now + max(checkpoint_seconds, 20 * (now - before))
                if stop:
                    raise RunInterrupted(f"stopped after step {self.step} of {self.total_steps}")
        self._finish(folder, started)

    def _rest_of_epoch(self) -> Iterator[Tensor]:
        epoch, done = divmod(self.step, self.steps_per_epoch)
        # An epoch's order is a function of seed and epoch alone: nothing of it has to be saved.
        digest = hashlib.sha256(f"order {self.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        order = batches(self.problem.size("train"), self.recipe.batch_size, generator)
        for number, indices in enumerate(order):
            if number >= done:
                yield indices

    def _losses(self, batch: Any, features: Sequence[Tensor] | Tensor) -> dict[str, Tensor | None]:
        return self.problem.losses(self.model.predict(features), batch, self.chosen)

    def _train_step(self, indices: Tensor) -> None:
        started = time.perf_counter()
        batch = self.problem.batch("train", indices)
        self.optimizer.zero_grad(set_to_none=True)
        features = self.represent(batch)
        # A view of the features per head lets one engine call find every head's gradient.
        views = branch(features, len(self.tasks)) if isinstance(features, Tensor) else features
        losses = self._losses(batch, views)
        counts = self.problem.counts(batch, self.chosen)
        balanced = self.balancer.backward(losses, features=views, counts=counts)
        self.learning_rate.before_step(self.step)
        self.optimizer.step()

        # Only some methods call it, and without gradients.
        self.balancer.after_step(lambda: self._losses(batch, self.model.represent(batch)))

        known = [(i, loss) for i, t in enumerate(self.tasks) if (loss := losses.get(t)) is not None]
        if known:
            values = torch.stack([loss.detach().reshape(()) for _, loss in known]).tolist()
            for (position, _), value in zip(known, values, strict=True):
                self.loss_sums[position] += value
                self.loss_counts[position] += 1
        if self.step % self.stride == 0:
            self.row_steps.append(self.step)
            self.row_weights.append(_row(balanced.weights))
            read = balanced.eigenvalues
            self.row_eigenvalues.append(None if read is None else _row(read))
        self.step += 1
        self.epoch_seconds += time.perf_counter() - started

    def _end_epoch(self) -> None:
        started = time.perf_counter()
        epoch = self.step // self.steps_per_epoch - 1
        val = self._evaluate(self.split, epoch)
        if self.baseline is not None:
            scores = task_scores(val, self.baseline, self.metrics, self.tasks)
            self.balancer.weighting.observe(scores)
        self.balancer.end_epoch()
        means = [
            total / count if count else None
            for total, count in zip(self.loss_sums, self.loss_counts, strict=True)
        ]
        self.history.append(
            Epoch(
                epoch=epoch,
                train_losses=tuple(means),
                val=val,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                train_seconds=self.epoch_seconds,
                eval_seconds=time.perf_counter() - started,
            )
        )
        self.learning_rate.end_epoch(val)
        if epoch >= self.recipe.epochs - self.recipe.tested_epochs:
            self.tested.append(self._evaluate("test", epoch))
        self.loss_sums = [0.0] * len(self.tasks)
        self.loss_counts = [0] * len(self.tasks)
        self.epoch_seconds = 0.0

    def _evaluate(self, split: Split, epoch: int) -> tuple[float, ...]:
        values = self.problem.evaluate(self.model, split, self.chosen)
        if values.shape != (len(self.metrics),):
            raise ValueError(
                f"{self.problem.name}.evaluate must return shape ({len(self.metrics)},), one "
                f"number per metric. Found {tuple(values.shape)}."
            )
        numbers = tuple(float(value) for value in values.tolist())
        for metric, number in zip(self.metrics, numbers, strict=True):
            if not math.isfinite(number):
                raise FloatingPointError(
                    f"metric {metric.name} is {number} on the {split} split after epoch {epoch}. "
                    "The training has diverged: lower the learning rate."
                )
        return numbers

    def _finish(self, folder: Path, started: float) -> None:
        test = tuple(statistics.fmean(values) for values in zip(*self.tested, strict=True))
        write_history(folder / HISTORY, self.history)
        write_steps(folder / STEPS, self._steps())
        if self.recorder is not None:
            self.recorder.save(folder / RECORD)
        seconds = [epoch.train_seconds for epoch in self.history]
        result = RunResult(
            test=test,
            val=self.history[-1].val,
            seconds_per_epoch=statistics.median(seconds),
            train_seconds=sum(seconds),
            wall_seconds=time.monotonic() - started,
            steps=self.step,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        write_json(folder / RESULT, result.to_json())
        (folder / CHECKPOINT).unlink(missing_ok=True)

    def _steps(self) -> Steps:
        read = self.row_eigenvalues
        blank = torch.full((len(self.tasks),), math.nan)
        return Steps(
            step=np.array(self.row_steps, dtype=np.int64),
            weights=torch.stack(self.row_weights).numpy(),
            eigenvalues=None
            if all(row is None for row in read)
            else torch.stack([blank if row is None else row for row in read]).numpy(),
        )

    # -------------------------------------------------------------------------------------------
    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        steps = self._steps()
        return {
            "identity": canonical_json(self.identity),
            "versions": versions(),
            "threads": self.threads,
            "baseline": None if self.baseline is None else list(self.baseline),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.learning_rate.state_dict(),
            "balancer": self.balancer.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "history": [asdict(epoch) for epoch in self.history],
            "tested": [list(values) for values in self.tested],
            "loss_sums": self.loss_sums,
            "loss_counts": self.loss_counts,
            "epoch_seconds": self.epoch_seconds,
            "wall_seconds": self.wall_seconds,
            # One tensor per kind, not one per row: a file of thousands of small tensors is slow.
            "row_steps": torch.from_numpy(steps.step),
            "weights": torch.from_numpy(steps.weights),
            "eigenvalues": None
            if steps.eigenvalues is None
            else torch.from_numpy(steps.eigenvalues),
            "record_settings": self.record_settings,
            "record": None if self.recorder is None else self.recorder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.balancer.load_state_dict(state["balancer"])
        # A balancer may make the weights that it learns only when it knows what to make.
        self._make_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate.load_state_dict(state["schedule"])
        self.step = state["step"]
        self.history = [
            Epoch(**{**e, "train_losses": tuple(e["train_losses"]), "val": tuple(e["val"])})
            for e in state["history"]
        ]
        self.tested = [tuple(values) for values in state["tested"]]
        self.loss_sums = state["loss_sums"]
        self.loss_counts = state["loss_counts"]
        self.epoch_seconds = state["epoch_seconds"]
        self.wall_seconds = state["wall_seconds"]
        self.row_steps = state["row_steps"].tolist()
        self.row_weights = [row.clone() for row in state["weights"]]
        read = state["eigenvalues"]
        self.row_eigenvalues = (
            [None] * len(self.row_steps) if read is None else [row.clone() for row in read]
        )
        if self.recorder is not None:
            self.recorder.load_state_dict(state["record"])
        torch.set_rng_state(state["random"])


def _row(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32).clone()
