"""The loop over the steps of a run: epochs, checkpoints, progress in words, results."""

from __future__ import annotations

import math
import statistics
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ntkmtl.bench.compute.processes import raised_on_all_ranks
from ntkmtl.bench.problems.base import batches
from ntkmtl.bench.runs import MODEL, RECORD, RunFolderLostError, RunInterrupted, RunResult
from ntkmtl.bench.runs.model_file import write_model
from ntkmtl.bench.training.baselines import task_scores
from ntkmtl.bench.training.learner import text_seed
from ntkmtl.bench.training.log import TrainingLog
from ntkmtl.bench.training.step import Stepper, cuda_random
from ntkmtl.errors import NonFiniteError
from ntkmtl.metrics import delta_m

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ntkmtl.bench.problems.base import Split
    from ntkmtl.bench.runs import Epoch, RunMetric
    from ntkmtl.bench.runs.folder import RunFolder
    from ntkmtl.bench.training.learner import Learner
    from ntkmtl.bench.training.step import StepSnapshot

__all__ = ["TrainingLoop", "progress_words"]

LOOK_SECONDS = 1.0
"""Time between two checks that the run's folder is still there, in seconds."""


class BestEpoch(NamedTuple):
    """The epoch whose network is kept.

    Attributes:
        epoch: Its number, from 0.
        value: What it is judged by, lower is better.
        weights: The network's state.
    """

    epoch: int
    value: float
    weights: dict[str, Tensor]


class TrainingLoop:
    """The state of a run, and the loop over its steps.

    Args:
        learner: The network and what trains it.
        threads: Threads that torch computes with.
    """

    def __init__(self, learner: Learner, threads: int) -> None:
        self.learner = learner
        self.group = learner.group
        self.threads = threads
        self.stepper = Stepper(learner)
        self.log = TrainingLog(learner)
        self.step = 0
        self.wall_seconds = 0.0
        self.best: BestEpoch | None = None

    def run(
        self,
        folder: RunFolder,
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool],
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Take the steps that are left, and write the results.

        Args:
            folder: The run's folder.
            progress: Called after every step with the steps done and their total number.
            should_stop: Asked after every step; True writes a checkpoint and stops.
            note: Called after every epoch with a few words on the run.

        Raises:
            RunInterrupted: The run was stopped on request.
            RunFolderLostError: The folder was removed meanwhile.
            NonFiniteError: A loss or gradient is not finite.
            FloatingPointError: A metric is not finite.
        """
        learner, total = self.learner, self.learner.total_steps
        clock = _RunClock(learner.spec.checkpoint_seconds, self.wall_seconds)
        while self.step < total:
            for indices in self._rest_of_epoch():
                self._take_step(indices, folder, clock)
                if progress is not None:
                    progress(self.step, total)
                if learner.epoch_of(self.step)[1] == 0:
                    self._end_epoch()
                    if note is not None:
                        note(self._words())
                first = self.group.first
                stop, due, lost = self.group.flags(
                    should_stop(),
                    first and clock.checkpoint_due(),
                    first and clock.look_due() and not folder.present(),
                )
                if lost:
                    raise raised_on_all_ranks(RunFolderLostError(folder.path))
                if stop or due:
                    self._save(folder, clock)
                if stop:
                    raise raised_on_all_ranks(
                        RunInterrupted(f"stopped after step {self.step} of {total}")
                    )
        self.group.from_first(lambda: self._finish(folder, clock))

    def _take_step(self, indices: Tensor, folder: RunFolder, clock: _RunClock) -> None:
        try:
            self.train_step(indices)
        except (NonFiniteError, FloatingPointError) as error:
            if isinstance(error, NonFiniteError):
                before = self.stepper.before()
                # Not where the method's state has changed and is too large to be copied in every
                # step: the last checkpoint stands then, and the run resumes from there.
                if not self.group.flags(before is None)[0]:
                    self._save(folder, clock, before)
            raise raised_on_all_ranks(error)  # noqa: B904  (the same error)

    def train_step(self, indices: Tensor) -> None:
        """Take the next step.

        Args:
            indices: Samples of the training split, shape (B,).

        Raises:
            NonFiniteError: A loss or gradient is not finite.
        """
        started, had = time.perf_counter(), time.thread_time()
        parts = self.stepper.take(indices, self.step)
        self.log.add_step(self.step, parts)
        self.step += 1
        self.log.epoch_seconds += time.perf_counter() - started
        self.log.epoch_cpu_seconds += time.thread_time() - had

    def batches(self) -> Iterator[Tensor]:
        """Yield the samples of step after step, epoch after epoch, without end."""
        while True:
            yield from self._rest_of_epoch()

    def _rest_of_epoch(self) -> Iterator[Tensor]:
        epoch, done = self.learner.epoch_of(self.step)
        size, batch_size = self.learner.problem.size("train"), self.learner.recipe.batch_size
        if self.learner.is_lbfgs(self.step):
            yield torch.arange(size)
            return
        # An epoch's order is a function of seed and epoch alone: nothing of it has to be saved.
        generator = torch.Generator().manual_seed(
            text_seed(f"order {self.learner.spec.seed} {epoch}")
        )
        for number, indices in enumerate(batches(size, batch_size, generator)):
            if number >= done:
                yield indices

    # ------------------------------------------------------------------ epochs

    def _end_epoch(self) -> None:
        started = time.perf_counter()
        learner = self.learner
        epoch = learner.epoch_of(self.step)[0] - 1
        self._require_losses(epoch)
        val = self._evaluate(learner.split, epoch)
        if learner.baseline is not None:
            scores = task_scores(val, learner.baseline, learner.metrics, learner.tasks)
            learner.balancer.weighting.observe(scores)
        learner.balancer.end_epoch()
        self.log.end_epoch(val, time.perf_counter() - started, self.step - 1)
        learner.learning_rate.end_epoch(val)
        if learner.recipe.chosen_epoch == "validation":
            self._keep_if_best(epoch)
        elif epoch >= learner.recipe.total_epochs - learner.recipe.tested_epochs:
            self.log.tested.append(self._evaluate("test", epoch))

    def _require_losses(self, epoch: int) -> None:
        """Refuse an epoch in which nothing was trained, unless steps were left out for a NaN.

        Raises:
            ValueError: No task had a loss in any batch.
        """
        skipped = self.stepper.skipped + self.stepper.overflowed > 0
        if not self.group.flags(any(self.log.loss_counts) or skipped)[0]:
            learner = self.learner
            raise raised_on_all_ranks(
                ValueError(
                    f"no task of {learner.problem.name} had a loss in any batch of epoch {epoch}: "
                    f"losses() gave none for {', '.join(learner.tasks)}, so that nothing was "
                    "trained. Look at the labels of the training split."
                )
            )

    def _words(self) -> str:
        learner = self.learner
        return progress_words(
            self.log.history, learner.metrics, learner.recipe.total_epochs, learner.split
        )

    def _keep_if_best(self, epoch: int) -> None:
        """Keep the network if its loss on the validation split is the least so far.

        After the last epoch the network that was kept takes the place of the one trained, and is
        tested.
        """
        learner = self.learner
        value = self.group.from_first(
            lambda: learner.problem.selection(learner.evaluated, learner.chosen_tasks)
        )
        if self.best is None or value < self.best.value:
            state = learner.model.state_dict()
            weights = {name: tensor.detach().clone() for name, tensor in state.items()}
            self.best = BestEpoch(epoch, value, weights)
        if epoch == learner.recipe.total_epochs - 1:
            learner.model.load_state_dict(self.best.weights)
            self.log.tested.append(self._evaluate("test", self.best.epoch))

    def _evaluate(self, split: Split, epoch: int) -> tuple[float, ...]:
        learner = self.learner

        def evaluate() -> tuple[float, ...]:
            values = learner.problem.evaluate(learner.evaluated, split, learner.chosen_tasks)
            if values.shape != (len(learner.metrics),):
                raise ValueError(
                    f"{learner.problem.name}.evaluate must return shape ({len(learner.metrics)},), "
                    f"one number per metric. Found {tuple(values.shape)}."
                )
            numbers = tuple(float(value) for value in values.tolist())
            for metric, number in zip(learner.metrics, numbers, strict=True):
                if not math.isfinite(number):
                    raise FloatingPointError(
                        f"metric {metric.name} is {number} on the {split} split after epoch "
                        f"{epoch}. The training has diverged: lower the learning rate."
                    )
            return numbers

        # Running means of batch norm differ between processes: the first one's count.
        return self.group.from_first(evaluate)

    def _finish(self, folder: RunFolder, clock: _RunClock) -> None:
        learner, log, stepper = self.learner, self.log, self.stepper
        if stepper.skipped + stepper.overflowed >= self.step:
            raise FloatingPointError(
                f"none of {self.step} steps could be taken, as losses or gradients were not "
                "finite: the network is as it was made. Look at the data and the losses."
            )
        seconds = [epoch.train_seconds for epoch in log.history]
        skips = learner.recipe.on_nonfinite == "skip"
        wall_seconds = clock.wall_seconds()
        folder.require_present()
        model = None
        if learner.spec.keep_model:
            weights = learner.model.state_dict()
            model = write_model(folder.file(MODEL), weights, *learner.problem.fitted())
        if learner.recorder is not None:
            learner.recorder.save(folder.file(RECORD))
        result = RunResult(
            test=tuple(statistics.fmean(values) for values in zip(*log.tested, strict=True)),
            val=log.history[-1 if self.best is None else self.best.epoch].val,
            epoch=None if self.best is None else self.best.epoch,
            seconds_per_epoch=statistics.median(seconds),
            train_seconds=sum(seconds),
            wall_seconds=wall_seconds,
            steps=self.step,
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            skipped_steps=stepper.skipped if skips else None,
            overflowed_steps=stepper.overflowed if learner.recipe.precision == "fp16" else None,
            cpu_share=log.cpu_share(),
            model=model,
        )
        folder.finish(log.history, log.steps(), result)

    # ------------------------------------------------------------------ checkpoints

    def _save(
        self, folder: RunFolder, clock: _RunClock, before: StepSnapshot | None = None
    ) -> None:
        """Write a checkpoint, from before the last step if that was rejected."""
        begun = time.monotonic()
        self.wall_seconds = clock.wall_seconds()
        state = self.state_dict(before)
        self.group.from_first(lambda: folder.save(state))
        clock.saved(time.monotonic() - begun)

    def state_dict(self, before: StepSnapshot | None = None) -> dict[str, Any]:
        """Return what a checkpoint holds; every process calls it.

        Args:
            before: From before the last step if it was rejected.
        """
        learner = self.learner
        own = {
            "random": torch.get_rng_state() if before is None else before.random,
            "cuda_random": cuda_random(learner.device) if before is None else before.cuda,
            "balancer": learner.balancer.state_dict() if before is None else before.balancer,
            "loss_sums": self.log.loss_sums,
            "loss_counts": self.log.loss_counts,
        }
        scaler, baseline = learner.arithmetic.scaler, learner.baseline
        return {
            "threads": self.threads,
            "baseline": None if baseline is None else list(baseline),
            "model": dict(learner.model.state_dict()),
            "optimizer": learner.optimizer.state_dict(),
            "schedule": learner.learning_rate.state_dict(),
            **own,
            "processes": self.group.size,
            "device": learner.device.type,
            # What differs between processes.
            "each": self.group.gather(own) if self.group.size > 1 else None,
            "scaler": None if scaler is None else scaler.state_dict(),
            "skipped": self.stepper.skipped,
            "overflowed": self.stepper.overflowed,
            "step": self.step,
            "wall_seconds": self.wall_seconds,
            **self.log.state_dict(),
            "record_settings": learner.record_settings,
            "record": None if learner.recorder is None else learner.recorder.state_dict(),
            "best": None if self.best is None else self.best._asdict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned."""
        learner = self.learner
        own = state if state.get("each") is None else state["each"][self.group.rank]
        learner.model.load_state_dict(state["model"])
        learner.balancer.load_state_dict(own["balancer"])
        # A Balancer may make the weights that it learns only once it knows the tasks.
        learner.make_optimizer()
        learner.optimizer.load_state_dict(state["optimizer"])
        learner.learning_rate.load_state_dict(state["schedule"])
        if learner.arithmetic.scaler is not None:
            learner.arithmetic.scaler.load_state_dict(state["scaler"])
        if learner.recorder is not None:
            learner.recorder.load_state_dict(state["record"])
        best = state.get("best")
        self.best = None if best is None else BestEpoch(**best)
        self.step = state["step"]
        self.wall_seconds = state["wall_seconds"]
        self.stepper.skipped = state["skipped"]
        self.stepper.overflowed = state["overflowed"]
        self.log.load_state_dict(state, own)
        torch.set_rng_state(own["random"])
        if own.get("cuda_random") is not None:
            torch.cuda.set_rng_state(own["cuda_random"], learner.device)


class _RunClock:
    """When to write a checkpoint, and how long the run has taken.

    Args:
        checkpoint_seconds: Least time between two checkpoints.
        before: Time that earlier parts of the run took, in seconds.
    """

    def __init__(self, checkpoint_seconds: float, before: float) -> None:
        now = time.monotonic()
        self.checkpoint_seconds = checkpoint_seconds
        self.started = now - before
        self.next_checkpoint = now + checkpoint_seconds
        self.next_look = now + LOOK_SECONDS

    def wall_seconds(self) -> float:
        return time.monotonic() - self.started

    def checkpoint_due(self) -> bool:
        return time.monotonic() >= self.next_checkpoint

    def look_due(self) -> bool:
        now = time.monotonic()
        if now < self.next_look:
            return False
        self.next_look = now + LOOK_SECONDS
        return True

    def saved(self, seconds: float) -> None:
        """Space checkpoints so that they take at most a twentieth of the time."""
        self.next_checkpoint = time.monotonic() + max(self.checkpoint_seconds, 20 * seconds)


def progress_words(
    history: Sequence[Epoch], metrics: Sequence[RunMetric], epochs: int, split: str
) -> str:
    """Return where a run stands, in a few words.

    The loss is the sum over the tasks of the last epoch's mean losses. Of several metrics the mean
    relative change since the first epoch is told, in percent and negative where they have become
    better; it is left out where a metric of the first epoch is not positive.

    Args:
        history: The epochs so far, at least one.
        metrics: What the network is judged by.
        epochs: Number of epochs of the run.
        split: On which split the metrics of ``history`` are.

    Example:
        >>> from ntkmtl.bench.runs import Epoch, RunMetric
        >>> metrics = [RunMetric("a", task="a"), RunMetric("b", task="b")]
        >>> history = [
        ...     Epoch(0, (2.0, 3.0), (4.0, 8.0), 0.1, 1.0, 0.1),
        ...     Epoch(1, (1.0, 0.5), (2.0, 4.0), 0.1, 1.0, 0.1),
        ...     Epoch(2, (0.9, 0.4), (3.0, 4.0), 0.1, 1.0, 0.1),
        ... ]
        >>> progress_words(history, metrics, 5, "val")
        'epoch 3/5, loss 1.3, val -37.5 %, best -50.0 % in epoch 2'
        >>> progress_words([Epoch(0, (2.0,), (4.0,), 0.1, 1.0, 0.1)], metrics[:1], 5, "val")
        'epoch 1/5, loss 2, val 4, best 4 in epoch 1'
    """
    losses = [loss for loss in history[-1].train_losses if loss is not None]
    words = [f"epoch {len(history)}/{epochs}"]
    words += [f"loss {sum(losses):.3g}"] if losses else []
    first = history[0].val
    if len(metrics) == 1:
        values = [epoch.val[0] for epoch in history]
        shown = [f"{value:.3g}" for value in values]
        best = (max if metrics[0].higher_is_better else min)(values)
    elif min(first, default=0.0) > 0:
        higher = [metric.higher_is_better for metric in metrics]
        values = delta_m([epoch.val for epoch in history], first, higher).tolist()
        shown = [f"{value:.1f} %" for value in values]
        best = min(values)
    else:
        return ", ".join(words)
    at = values.index(best)
    return ", ".join([*words, f"{split} {shown[-1]}", f"best {shown[at]} in epoch {at + 1}"])
