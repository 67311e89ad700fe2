"""Constant weights for a problem of the bench: the first percent of a run, watched."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.compute.environment import default_threads, reproducible
from ntkmtl.bench.training.identity import run_identity
from ntkmtl.bench.training.learner import Learner
from ntkmtl.bench.training.loop import TrainingLoop
from ntkmtl.bench.training.spec import RunSpec
from ntkmtl.watch import Watch, weigh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ntkmtl.bench.problems.base import Problem, Recipe
    from ntkmtl.watch import ConstantWeights

__all__ = ["weigh_problem"]


def weigh_problem(
    problem: Problem,
    *,
    percent: float = 2.0,
    method: str = "ntkmtl",
    seed: int = 0,
    recipe: Recipe | None = None,
    priorities: dict[str, float] | Sequence[float] | None = None,
    train: str = "balanced",
    threads: int | None = None,
) -> ConstantWeights:
    """Watch the first percent of a run of a problem, as its recipe has it.

    Args:
        problem: The problem.
        percent: As for :func:`ntkmtl.weigh`.
        method: As for :func:`ntkmtl.weigh`.
        seed: Of the initial weights and of the order of the data.
        recipe: How long and how the network is trained; the problem's own if None.
        priorities: As for :func:`ntkmtl.weigh`.
        train: As for :func:`ntkmtl.weigh`.
        threads: Threads that torch computes with; ``OMP_NUM_THREADS`` or all cores if None.

    Raises:
        ValueError: A number is out of range, or a method has no weights to keep.
    """
    identity = run_identity(problem, "ls", seed, recipe=recipe)
    with reproducible(threads or default_threads(jobs=1)):
        learner = Learner(problem, RunSpec(method="ls", seed=seed, recipe=recipe), identity)
        options: dict[str, Any] = {"tasks": list(learner.tasks)}
        if learner.model.private_below:
            options["shared"] = list(learner.model.shared_parameters())
        watch = weigh(
            learner.total_steps,
            percent,
            method=method,
            priorities=priorities,
            train=train,  # type: ignore[arg-type]
            **options,
        )
        learner.balancer = watch.balancer
        _watch(TrainingLoop(learner, 1), watch)
        return watch.result()


def _watch(loop: TrainingLoop, watch: Watch) -> None:
    """Take the steps that are watched."""
    for indices in islice(loop.batches(), watch.total):
        parts = loop.stepper.take(indices, loop.step)
        loop.step += 1
        if not parts:
            raise ValueError("a step was skipped, as a loss or gradient was not finite")
        watch.observe(parts[-1].balanced)
        if loop.step % loop.learner.steps_per_epoch == 0:
            watch.balancer.end_epoch()
