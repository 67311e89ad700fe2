"""What a comparison is asked for, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ntkmtl import weighting
from ntkmtl.bench.training.methods import named_all

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ntkmtl.bench.compute.device import Device
    from ntkmtl.bench.jobs.job import Failure
    from ntkmtl.bench.training.methods import MethodLike

__all__ = ["Comparison", "Sweep", "SweepError", "method_names"]


class SweepError(ValueError):
    """A comparison cannot be done as asked for; nothing was trained or changed."""


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        problem: Registered name, or ``module.path:ClassName``.
        methods: Names of methods, ``module.path:ClassName`` or ``path/file.py:ClassName`` for your
            own, or weightings; ``"all"`` stands for every registered one, ``"stl"`` for the
            baselines. Once made, a comparison holds names only.
        seeds: Seeds, not negative.
        out: Folder for the runs.
        jobs: Runs at a time, each in a worker process; 1 trains in this process.
        problem_options: Options given to the problem.
        method_options: Options given to the Balancer, by method.
        method_recipes: Changes of the recipe by method, as ``learning_rate``; made after those for
            all methods. What :func:`ntkmtl.bench.training.recipes.changed_recipe` takes.
        epochs: Instead of the recipe's; fewer make the recipe a reduced one.
        batch_size: Instead of the recipe's.
        learning_rate: Instead of the recipe's.
        minibatches: Instead of the recipe's.
        single_task_baselines: Whether to train the baselines that Delta-m compares with.
        tasks: The tasks to train baselines for, all that a metric judges if None.
        checkpoint_seconds: Least time between two checkpoints of a run.
        record: What to record of the kernel of each run but the baselines; see :func:`train`.
        threads: Threads that a run computes with. If None, what the engine says: on this machine
            ``OMP_NUM_THREADS`` where it is set, otherwise one for runs side by side and all cores
            for a run alone. A run that resumes keeps the number that it began with.
        training: ``precision``, ``accumulate``, ``clip``, ``compile``, ``on_nonfinite`` and
            ``lbfgs_steps`` instead
            of the recipe's.
        device: Where to train; see :func:`train`.
        references: Whether to compute the problem's reference models, which are no networks.
        tracker: What logs the runs while they are trained; see :func:`train`.
        keep_model: Whether runs keep their trained networks.
    """

    problem: str
    methods: Sequence[MethodLike]
    seeds: Sequence[int]
    out: str | os.PathLike[str]
    jobs: int = 1
    problem_options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    minibatches: int | None = None
    single_task_baselines: bool = True
    tasks: Sequence[str] | None = None
    checkpoint_seconds: float = 5.0
    record: Mapping[str, Any] | None = None
    threads: int | None = None
    method_recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    device: Device = "cpu"
    tracker: str | None = None
    keep_model: bool = True
    references: bool = True

    def __post_init__(self) -> None:
        names, options = _named(self.methods, self.method_options)
        object.__setattr__(self, "methods", names)
        object.__setattr__(self, "method_options", options)
        recipes = {
            weighting.spec(name).name if ":" in name else name: changes
            for name, changes in self.method_recipes.items()
        }
        object.__setattr__(self, "method_recipes", recipes)

    @property
    def names(self) -> list[str]:
        """The names under which runs keep the methods."""
        return [method for method in self.methods if isinstance(method, str)]


@dataclass(frozen=True)
class Sweep:
    """The outcome of a comparison.

    Attributes:
        problem: Name of the problem.
        out: Its folder.
        trained: Runs trained now.
        complete: Runs that were complete before.
        cached: Baselines that were copied from the cache.
        unfinished: Runs that are still to be trained.
        failures: Runs that failed.
        interrupted: True if it was stopped before the end.
        seconds: Time taken.
    """

    problem: str
    out: Path
    trained: int
    complete: int
    cached: int
    unfinished: int
    failures: tuple[Failure, ...]
    interrupted: bool
    seconds: float


def method_names(asked: Sequence[MethodLike]) -> list[str]:
    """Return the names of methods in the order asked for, each once.

    Args:
        asked: Methods; ``"all"`` stands for every one but the single-task baselines.

    Raises:
        SweepError: A method is unknown.
    """
    return _named(asked, {})[0]


def _named(
    methods: Sequence[MethodLike], options: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    try:
        found, own = named_all(methods, options)
    except (TypeError, ValueError) as error:
        raise SweepError(str(error)) from error
    if not found:
        raise SweepError(f"at least one method is needed, found {list(methods)}")
    return found, own
