"""Training one network with one method and one seed: alone, as a job, or its first percent."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ntkmtl.bench.compute.device import buffers_kept, choose_device
from ntkmtl.bench.compute.environment import check_threads, default_threads, reproducible, versions
from ntkmtl.bench.compute.processes import check_launch, processes
from ntkmtl.bench.jobs.engine import JobProgress, stop_requests
from ntkmtl.bench.problems import find_problem
from ntkmtl.bench.problems.base import Recipe
from ntkmtl.bench.runs import (
    CHECKPOINT,
    RECORD,
    RunConflictError,
    RunInterrupted,
    canonical_json,
    differences,
    load_run,
)
from ntkmtl.bench.runs.folder import CheckpointError, RunFolder
from ntkmtl.bench.training.comparison import named
from ntkmtl.bench.training.learner import Learner, share_of_minibatches
from ntkmtl.bench.training.log import check_tracker
from ntkmtl.bench.training.loop import TrainingLoop
from ntkmtl.bench.training.spec import (
    RunSpec,
    combines_entries,
    record_differences,
    record_settings,
    run_identity,
)
from ntkmtl.watch import weigh

if TYPE_CHECKING:
    import os

    from ntkmtl.bench.compute.processes import ProcessGroup
    from ntkmtl.bench.problems.base import Problem
    from ntkmtl.bench.runs import Run
    from ntkmtl.bench.training.comparison import MethodLike
    from ntkmtl.watch import ConstantWeights

__all__ = ["TrainingJob", "train", "train_spec", "weigh_problem"]


def train(
    problem: Problem,
    method: MethodLike,
    seed: int,
    out_dir: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    note: Callable[[str], None] | None = None,
    **options: Any,
) -> Run:
    """Train one network and leave a run folder.

    The same arguments give the same numbers on the same machine with the same number of threads.
    A run that was stopped or killed resumes from its last checkpoint, with the threads it began
    with, and ends with the numbers of one that never was. A complete run is not trained again.

    Launched in several processes, by ``torchrun`` or ``accelerate launch``, each calls this with
    the same arguments and takes its slice of every batch; the first one writes the files. Numbers
    are those of one process except for rounding, dropout, batch norm: see ``docs/training.md``.

    The network of the last epoch is the one that is tested, or the means over the last few epochs
    are taken if the recipe says so: nothing is chosen by its results.

    Args:
        problem: What is trained.
        method: Name of the method; ``module.path:ClassName`` or ``path/file.py:ClassName`` of one
            of your own; or a weighting, of which the settings count and not the state.
        seed: Seed of the initial weights, of the order of the data, and of all random draws.
        out_dir: The run's own folder.
        progress: Called after every step with the steps done and their total number.
        should_stop: Asked after every step; True writes a checkpoint and stops. If None, Ctrl-C and
            SIGTERM do so.
        note: Called after every epoch with a few words on the run: epoch, loss, validation.
        **options: ``recipe``, ``method_options``, ``device``, ``threads``, ``tracker`` and the
            other fields of :class:`ntkmtl.bench.training.RunSpec`.

    Returns:
        The complete run.

    Raises:
        RunBusyError: Another process is training in ``out_dir``.
        RunConflictError: ``out_dir`` holds a run with another configuration.
        RunFileError: A file in ``out_dir`` is damaged.
        RunFolderLostError: ``out_dir`` was removed while the run was being trained.
        RunInterrupted: The run was stopped on request.
        DeviceError: The device is missing, or cannot compute in the recipe's precision.
        MissingExtraError: The tracker is not installed, or accelerate if it is needed.
        TypeError: An option is unknown, or the weighting cannot be made again from its settings.
        ValueError: The parts do not fit each other, or the method needs a baseline and got none.
        NonFiniteError: A loss or gradient became NaN or infinite. The checkpoint is from before
            that step.
        FloatingPointError: A metric became NaN or infinite.
        OSError: A file cannot be written, as on a full disk; the error names it.
    """
    name, settings = named(method)
    if settings:
        options["method_options"] = {**settings, **(options.get("method_options") or {})}
    spec = RunSpec(method=name, seed=seed, **options)
    return train_spec(problem, spec, out_dir, progress=progress, should_stop=should_stop, note=note)


def train_spec(
    problem: Problem,
    spec: RunSpec,
    out_dir: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    note: Callable[[str], None] | None = None,
) -> Run:
    """Train what a :class:`~ntkmtl.bench.training.RunSpec` asks for, as :func:`train` does.

    Args:
        problem: What is trained.
        spec: How.
        out_dir: The run's folder.
        progress: As for :func:`train`, like the next two.
        should_stop: See there.
        note: See there.

    Returns:
        The run. The errors raised are those of :func:`train`.
    """
    check_tracker(spec.tracker)
    device = choose_device(spec.device)
    with (
        processes(device, accelerated=spec.tracker is not None) as group,
        contextlib.ExitStack() as locked,
    ):
        identity = group.everyone(lambda: _checked_identity(problem, spec, group))
        folder = RunFolder(out_dir, identity, versions())
        done, state = group.from_first(lambda: _begin(folder, spec, group, locked))
        if done is not None:
            return done
        if state is not None:
            spec = replace(spec, threads=state["threads"], baseline=state.get("baseline"))
        compiles = Recipe(**identity["recipe"]).compile
        with (
            reproducible(spec.threads or default_threads(jobs=1), group.device),
            buffers_kept(compiles),
        ):
            loop = group.everyone(lambda: _prepare(problem, spec, folder, group, state))
            # Joined once the network has the values that it begins with.
            loop.learner.forward = group.prepare(loop.learner.forward)
            with contextlib.ExitStack() as stack:
                if should_stop is None:
                    should_stop = stack.enter_context(stop_requests())
                if loop.log.tracker is not None:
                    stack.callback(loop.log.tracker.finish)
                loop.run(folder, progress, should_stop, note)
        return group.from_first(lambda: load_run(folder.path))


def _checked_identity(problem: Problem, spec: RunSpec, group: ProcessGroup) -> dict[str, Any]:
    """Return the identity of a run, after all checks that need no file.

    Raises:
        ValueError: Something does not fit.
    """
    check_threads(spec.threads)
    identity = run_identity(
        problem,
        spec.method,
        spec.seed,
        recipe=spec.recipe,
        method_options=spec.method_options,
        single_task=spec.single_task,
    )
    recipe = Recipe(**identity["recipe"])
    if group.size > 1:
        check_launch(recipe.precision)
        _check_processes(group.size, identity, spec.record)
    record_settings(spec.record, recipe)
    return identity


def _check_processes(
    size: int, identity: Mapping[str, Any], record: Mapping[str, Any] | None
) -> None:
    """Refuse what several processes cannot share.

    Raises:
        ValueError: The batch cannot be cut into equal slices, the method works in one process only,
            or a record is asked for.
    """
    recipe, method = Recipe(**identity["recipe"]), identity["method"]
    if recipe.lbfgs_steps:
        raise ValueError(f"L-BFGS works in a single process only; {size} were launched")
    pieces = size * recipe.accumulate
    if recipe.batch_size % pieces:
        raise ValueError(
            f"the {recipe.batch_size} samples of a step cannot be cut into {pieces} equal slices, "
            f"one for each of {size} processes"
            + (f" and {recipe.accumulate} parts" if recipe.accumulate > 1 else "")
            + "; change batch_size or the number of processes"
        )
    if combines_entries(method):
        raise ValueError(
            f"{method} works on the gradients entry by entry, or on those of the heads, in a "
            f"single process only; {size} were launched"
        )
    if record is not None:
        raise ValueError(f"the kernel is recorded in a single process only; {size} were launched")
    share_of_minibatches(method, identity["method_options"], size)


def _begin(
    folder: RunFolder, spec: RunSpec, group: ProcessGroup, locked: contextlib.ExitStack
) -> tuple[Run | None, dict[str, Any] | None]:
    """Return the run if it is complete; else lock its folder and return its checkpoint, if any.

    Raises:
        RunBusyError: Another process is training in the folder.
        RunConflictError: The folder holds another run, or one begun on another device or with
            another number of processes.
        RunFileError: A file in it is damaged.
    """
    settings = record_settings(spec.record, Recipe(**folder.identity["recipe"]))

    def check() -> list[str]:
        return record_differences(folder.file(RECORD), settings)

    def why_not(state: Mapping[str, Any]) -> str | None:
        recorded = state.get("record_settings")
        if settings is not None and recorded != settings:
            return f"was written with another record ({recorded})"
        return None

    if (done := folder.complete(check)) is not None:
        return done, None
    locked.enter_context(folder.lock())
    # Another process may have completed it while this one waited.
    if (done := folder.complete(check)) is not None:
        return done, None
    state = folder.resume(why_not)
    if state is not None:
        here = {"device": group.device.type, "processes": group.size}
        written = {key: state[key] for key in here if key in state}
        if found := differences(written, here):
            raise RunConflictError(folder.file(CHECKPOINT), found)
    return None, state


def _prepare(
    problem: Problem,
    spec: RunSpec,
    folder: RunFolder,
    group: ProcessGroup,
    state: Mapping[str, Any] | None,
) -> TrainingLoop:
    """Make the network and the loop; write ``config.json``, or load the checkpoint.

    Raises:
        CheckpointError: The checkpoint does not fit the network or the method.
        ValueError: The network cannot be kept.
    """
    threads = torch.get_num_threads()
    learner = Learner(problem, spec, folder.identity, group)
    if spec.keep_model:
        _check_weights(learner.model.state_dict())
    config = learner.config(threads)
    loop = TrainingLoop(learner, threads)
    if state is not None:
        try:
            loop.load_state_dict(state)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder.file(CHECKPOINT)} does not fit this run's network or method "
                f"({type(error).__name__}: {textwrap.shorten(str(error), 300)}). Has their code "
                "changed since it was written? Remove it, and the run starts again from its "
                "beginning"
            ) from error
    elif group.first:
        folder.start(config)
    if spec.tracker is not None and group.first:
        loop.log.track(spec.tracker, folder.path, resumed=state is not None)
    return loop


def _check_weights(weights: Mapping[str, Any]) -> None:
    """Refuse a network whose state holds something else than tensors."""
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"the network's state has {name!r}, a {type(value).__name__}: only tensors can be "
                "kept. Take it out of state_dict(), or train with --no-model (keep_model=False)"
            )


@dataclass(frozen=True)
class TrainingJob:
    """One run of a problem.

    Attributes:
        problem: Name of the problem, or ``module:Class``.
        problem_options: Options given to the problem.
        spec: What the run is asked to be.
        folder: The run's folder.
        steps: Number of optimizer steps.
        identity: What determines the run, as :func:`ntkmtl.bench.training.spec.run_identity`
            returns it.
        key: Key in the cache of baselines, ``""`` for other runs.
        after: Folders of the runs that must be complete before this one can begin.
        scored: Whether the method is given scores, so that it needs a baseline, which is known once
            the runs in ``after`` are complete.
        trial: Number of the trial of a search, None for any other run.
    """

    problem: str
    problem_options: Mapping[str, Any]
    spec: RunSpec
    folder: Path
    steps: int
    identity: Mapping[str, Any]
    key: str = ""
    after: tuple[Path, ...] = ()
    scored: bool = False
    trial: int | None = None

    @property
    def label(self) -> str:
        """The run in a few words."""
        task = "" if self.spec.single_task is None else f" {self.spec.single_task}"
        trial = "" if self.trial is None else f" trial {self.trial}"
        return f"{self.spec.method}{task}{trial} seed {self.spec.seed}"

    @property
    def may_diverge(self) -> bool:
        """Whether a loss that becomes NaN or infinite is a result: in the trials of a search."""
        return self.trial is not None

    def run(
        self,
        shared: dict[str, Any],
        progress: JobProgress,
        should_stop: Callable[[], bool],
    ) -> bool:
        """See :meth:`ntkmtl.bench.jobs.engine.RunnableJob.run`."""
        key = canonical_json([self.problem, dict(self.problem_options)])
        if key not in shared:
            shared[key] = find_problem(self.problem, self.problem_options)
        try:
            train_spec(
                shared[key],
                self.spec,
                self.folder,
                progress=progress.step,
                should_stop=should_stop,
                note=progress.note,
            )
        except RunInterrupted:
            return False
        return True


# ------------------------------------------------------------------------------------------------
# The first percent of a run


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
    check_threads(threads)
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
        loop = TrainingLoop(learner, 1)
        for indices in islice(loop.batches(), watch.total):
            parts = loop.stepper.take(indices, loop.step)
            loop.step += 1
            if not parts:
                raise ValueError("a step was skipped, as a loss or gradient was not finite")
            watch.observe(parts[-1].balanced)
            if loop.step % learner.steps_per_epoch == 0:
                watch.balancer.end_epoch()
        return watch.result()
