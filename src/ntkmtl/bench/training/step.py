"""One training step: forward pass, balanced backward pass, optimizer."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ntkmtl.analysis import residual_ntk
from ntkmtl.bench.compute.device import to_device
from ntkmtl.bench.problems.base import Problem
from ntkmtl.errors import NonFiniteError
from ntkmtl.graph import leaves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ntkmtl.analysis import Recorder
    from ntkmtl.balance import BalanceResult
    from ntkmtl.bench.training.learner import Learner

__all__ = ["StepPart", "StepSnapshot", "Stepper", "cuda_random"]

LBFGS_ITERATIONS = 20
"""Iterations of a step of L-BFGS, each with a line search."""

SNAPSHOT_BYTES = 2**20
"""Largest state of a Balancer that is copied before every step; methods that keep a gradient per
task have more."""


@dataclass(frozen=True)
class StepPart:
    """The outcome of a part of a step.

    Attributes:
        batch: Its samples.
        losses: The losses of the tasks with labels, by position.
        balanced: What the Balancer returned.
    """

    batch: Any
    losses: dict[int, Tensor]
    balanced: BalanceResult


@dataclass(frozen=True)
class StepSnapshot:
    """Snapshot to roll back to if the step is rejected.

    Attributes:
        random: State of torch's generator on the CPU.
        cuda: The same on the GPU, None without one.
        buffers: Buffers of the network, as running means of batch norm.
        balancer: State of the Balancer; None if it is too large to be copied in every step, or not
            needed.
    """

    random: Tensor
    cuda: Tensor | None
    buffers: list[Tensor]
    balancer: dict[str, Tensor] | None


def cuda_random(device: torch.device) -> Tensor | None:
    """Return the state of a GPU's generator, None without one."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


class Stepper:
    """Takes the training steps of a network.

    Args:
        learner: The network and what trains it.

    Attributes:
        skipped: Steps left out, as a loss or a gradient was not finite.
        overflowed: Steps left out while the gradient scaler of fp16 lowered its scale.
        snapshot: Taken before the last step.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.group = learner.group
        self.skipped = 0
        self.overflowed = 0
        self.snapshot: StepSnapshot | None = None
        self._large_state = False
        self._balancer_moved = False

    def take(self, indices: Tensor, number: int) -> list[StepPart]:
        """Take a step.

        Args:
            indices: Samples of the training split, shape (B,).
            number: Number of the step, from 0.

        Returns:
            The parts of the step; none if it was skipped.

        Raises:
            NonFiniteError: A loss or gradient is not finite, and the recipe does not skip the step.
        """
        learner, recipe = self.learner, self.learner.recipe
        self.snapshot = self._take_snapshot()
        self._balancer_moved = False
        learner.optimizer.zero_grad(set_to_none=True)
        count = recipe.accumulate
        parts: list[StepPart] = []
        try:
            if learner.is_lbfgs(number):
                return [self._minimize(indices, number)]
            for part in range(count):
                rows = self.group.share(indices, part, count)
                last = part + 1 == count
                waits = self.group.without_sync(learner.forward)
                with contextlib.nullcontext() if last else waits:
                    parts.append(self._differentiate(rows, 1.0 / count, number))
            self._update(parts, number)
        except NonFiniteError as error:
            self._restore(self.snapshot.buffers)
            if recipe.on_nonfinite == "stop":
                where = self._where(indices, number)
                raise NonFiniteError(error.task, number, error.what, error.value, where) from error
            self.skipped += 1
            return []
        return parts

    def before(self) -> StepSnapshot | None:
        """Return what there was before the step that was rejected, None if it is lost.

        It is lost where the state of the method has changed and is too large to be copied before
        every step. A state that has not changed differs only in its number of calls.
        """
        snapshot = self.snapshot
        if snapshot is None or snapshot.balancer is not None:
            return snapshot
        if self._balancer_moved:
            return None
        return replace(snapshot, balancer=self.learner.balancer.state_dict())

    # ------------------------------------------------------------------ gradients

    def _differentiate(self, rows: Tensor, scale: float, number: int) -> StepPart:
        """Add the gradients of some of a step's samples.

        Args:
            rows: The samples.
            scale: Factor of the gradients.
            number: Number of the step.

        Raises:
            NonFiniteError: A loss is not finite, or a gradient where the Balancer sees it.
        """
        learner = self.learner
        batch = to_device(learner.problem.batch("train", rows), learner.device)
        with learner.arithmetic.autocast():
            outputs = learner.forward(batch)
        losses = learner.losses(outputs, batch)
        known = {
            i: loss
            for i, task in enumerate(learner.tasks)
            if (loss := losses.get(task)) is not None
        }
        if learner.arithmetic.scaler is not None:
            # The Balancer leaves them to the scaler, whose smaller scale makes no loss finite.
            self._require_finite(known, number)
        unreached = _unreached(outputs, known) if self.group.size > 1 else None
        recorded = len(learner.recorder or ())
        balanced = self._balance(losses, batch, scale)
        if learner.recorder is not None and len(learner.recorder) > recorded:
            self._record_residuals(learner.recorder)
        if unreached is not None:
            roots, parameters = unreached
            torch.autograd.backward(roots, [torch.zeros_like(r) for r in roots], inputs=parameters)
        return StepPart(batch, {i: loss.detach() for i, loss in known.items()}, balanced)

    def _balance(
        self, losses: Mapping[str, Tensor | None], batch: Any, scale: float
    ) -> BalanceResult:
        learner = self.learner
        try:
            balanced = learner.balancer.backward(
                losses,
                features=learner.passing.views,
                counts=learner.problem.counts(batch, learner.chosen_tasks),
                scaler=learner.arithmetic.scaler,
                scale=scale,
            )
        except NonFiniteError as error:
            # Losses and gradients are checked before the method sees them.
            self._balancer_moved |= error.what not in ("loss", "gradient")
            raise
        self._balancer_moved = True
        return balanced

    def _record_residuals(self, recorder: Recorder) -> None:
        """Add the kernels of the problem's residuals, if it has any, to the step last recorded."""
        learner, problem = self.learner, self.learner.problem
        if type(problem).task_residuals is Problem.task_residuals:
            return
        size = problem.size("train")
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        rows = order[: min(problem.residual_samples, size)]
        batch = to_device(problem.batch("train", rows), learner.device)
        buffers = self._buffers()  # running means of batch norm
        devices = [learner.device] if learner.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            outputs = learner.model.predict(learner.model.represent(batch))
        residuals = problem.task_residuals(outputs, batch, learner.chosen_tasks)
        if residuals:
            recorder.add_residuals(residual_ntk(residuals, learner.model.parameters()))
        self._restore(buffers)

    def _require_finite(self, losses: Mapping[int, Tensor], number: int) -> None:
        values = {i: float(loss.detach()) for i, loss in losses.items()}
        bad = next(((i, value) for i, value in values.items() if not math.isfinite(value)), None)
        for found in self.group.gather(bad):
            if found is not None:
                raise NonFiniteError(self.learner.tasks[found[0]], number, "loss", found[1])

    # ------------------------------------------------------------------ the optimizer

    def _minimize(self, indices: Tensor, number: int) -> StepPart:
        """Take a step of L-BFGS, and return its first evaluation.

        Weights are those of that evaluation, and so is what is drawn at random: the line search
        compares values of one function. Weights change between steps, so nothing of what L-BFGS
        has learned of the curvature is kept for the next one.

        Raises:
            NonFiniteError: A loss or gradient is not finite; the network is as before.
        """
        learner, snapshot = self.learner, self.snapshot
        assert snapshot is not None
        parameters: list[Tensor] = [p for p in learner.model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=LBFGS_ITERATIONS,
            history_size=LBFGS_ITERATIONS,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )
        parts: list[StepPart] = []

        def evaluate() -> Tensor:
            torch.set_rng_state(snapshot.random)
            if snapshot.cuda is not None:
                torch.cuda.set_rng_state(snapshot.cuda, learner.device)
            learner.optimizer.zero_grad(set_to_none=True)
            part = self._differentiate(indices, 1.0, number)
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients and not _all_finite(gradients):
                raise self._find_nonfinite_task([part], number)
            parts.append(part)
            return part.balanced.total

        try:
            with learner.balancer.hold():
                optimizer.step(evaluate)
        except NonFiniteError:
            with torch.no_grad():
                torch._foreach_copy_(parameters, before)
            raise
        if learner.balancer.needs_after_step:
            self._show_losses_after(parts[0].batch)
        return parts[0]

    def _update(self, parts: Sequence[StepPart], number: int) -> None:
        """Take a step of the optimizer along the gradients of all parts.

        Raises:
            NonFiniteError: A gradient is not finite.
        """
        learner = self.learner
        gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
        scaler = learner.arithmetic.scaler
        if scaler is None:
            # Not every method looks at gradients.
            if gradients and not _all_finite(gradients):
                raise self._find_nonfinite_task(parts, number)
        elif gradients:
            scaler.unscale_(learner.optimizer)
        if learner.recipe.clip:
            nn.utils.clip_grad_norm_(learner.model.parameters(), learner.recipe.clip)
        learner.learning_rate.before_step(number)
        if (gradients or scaler is None) and not learner.arithmetic.step(learner.optimizer):
            self.overflowed += 1
            return
        if learner.balancer.needs_after_step:
            self._show_losses_after(parts[-1].batch)

    def _show_losses_after(self, batch: Any) -> None:
        """Show the method the losses after a step, unless one of them is not finite.

        The step has been taken and cannot be rejected any more, so the method learns nothing from
        it; if the network is beyond repair, the next step's losses will say so.
        """
        buffers = self._buffers()
        try:
            self.learner.balancer.after_step(lambda: self._losses_again(batch))
        except NonFiniteError:
            self._restore(buffers)

    def _losses_again(self, batch: Any) -> dict[str, Tensor | None]:
        learner = self.learner
        with learner.arithmetic.autocast():
            outputs = learner.model.predict(learner.model.represent(batch))
        return learner.losses(outputs, batch)

    def _find_nonfinite_task(self, parts: Sequence[StepPart], number: int) -> NonFiniteError:
        """Find the task whose gradient is not finite, by its gradient alone."""
        learner = self.learner
        parameters = [p for p in learner.model.parameters() if p.requires_grad]
        found: str | None = None
        for part in parts:
            losses = self._losses_again(part.batch)
            for task in learner.tasks:
                loss = losses.get(task)
                if found is not None or loss is None:
                    continue
                gradients = torch.autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True
                )
                if not all(bool(g.isfinite().all()) for g in gradients if g is not None):
                    found = task
        named = next((task for task in self.group.gather(found) if task is not None), None)
        return NonFiniteError(
            " or ".join(learner.tasks) if named is None else named, number, "gradient", math.nan
        )

    # ------------------------------------------------------------------ snapshots

    def _take_snapshot(self) -> StepSnapshot:
        balancer = None
        # Only a run that stops at a bad step writes a checkpoint from before it.
        if self.learner.recipe.on_nonfinite == "stop" and not self._large_state:
            balancer = self.learner.balancer.state_dict()
            size = sum(value.numel() * value.element_size() for value in balancer.values())
            self._large_state = size > SNAPSHOT_BYTES
        return StepSnapshot(
            random=torch.get_rng_state(),
            cuda=cuda_random(self.learner.device),
            buffers=self._buffers(),
            balancer=balancer,
        )

    def _buffers(self) -> list[Tensor]:
        return [buffer.detach().clone() for buffer in self.learner.model.buffers()]

    def _restore(self, buffers: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(self.learner.model.buffers(), buffers, strict=True):
                buffer.copy_(value)

    def _where(self, indices: Tensor, number: int) -> str:
        epoch, batch = self.learner.epoch_of(number)
        rows = ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
        return (
            f"epoch {epoch}, batch {batch} of {self.learner.steps_per_epoch}, samples {rows} of "
            "the training split"
        )


def _all_finite(gradients: list[Tensor]) -> bool:
    # A norm may overflow where no entry does.
    return bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()) or all(
        bool(g.isfinite().all()) for g in gradients
    )


def _unreached(
    outputs: Sequence[Tensor], known: Mapping[int, Tensor]
) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return outputs without a loss here and the parameters that only they depend on.

    DDP waits for a gradient of each parameter in each process, so these get zeros. Its own search
    for unused parameters hands out copies of the outputs, each of which depends on all heads, so
    that the gradients of the heads could not be separated.
    """
    missing = [output for i, output in enumerate(outputs) if i not in known]
    if not missing:
        return None
    reached, _ = leaves(known.values())
    own = [p for p in leaves(missing)[0] if p not in reached]
    return (missing, own) if own else None
