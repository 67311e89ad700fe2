"""Training one network with one method and one seed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ntkmtl.analysis import Recorder
from ntkmtl.balance import Balancer
from ntkmtl.bench.problems.base import MultiTaskModel, Problem, Recipe, Split, batches
from ntkmtl.bench.training._device import (
    Arithmetic,
    Evaluated,
    buffers_kept,
    check_recipe,
    choose_device,
    compile_heads,
    compiled,
    to_device,
)
from ntkmtl.bench.training.accelerating import Tracker, check_launch, check_tracker, told_to_shard
from ntkmtl.bench.training.checkpoints import (
    remove_checkpoints,
    usable_checkpoint,
    write_checkpoint,
)
from ntkmtl.bench.training.distributed import (
    JoiningBalancer,
    Team,
    gathered,
    known_to_all,
    local,
    processes,
    spread_like,
)
from ntkmtl.bench.training.environment import (
    cores,
    hardware,
    problem_version,
    reproducible,
    versions,
)
from ntkmtl.bench.training.locks import alone_in
from ntkmtl.bench.training.recording import record_differences, record_settings
from ntkmtl.bench.training.runs import (
    CHECKPOINT,
    CONFIG,
    FAILURE,
    FILES,
    HISTORY,
    MAX_STEP_ROWS,
    PREVIOUS,
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
from ntkmtl.bench.training.schedules import LearningRate, check_schedule, learning_rate_factor
from ntkmtl.bench.training.scores import check_baseline, task_scores, validation_split
from ntkmtl.bench.training.signals import stop_requests
from ntkmtl.errors import NonFiniteError
from ntkmtl.files import write_json
from ntkmtl.graph import leaves
from ntkmtl.kernel import RememberInputs, branch
from ntkmtl.weighting import create, spec

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ntkmtl.balance import BalanceResult
    from ntkmtl.bench.training._device import Device

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
    check_recipe(recipe)
    if recipe.batch_size % recipe.accumulate:
        raise ValueError(
            f"accumulate={recipe.accumulate} must divide the samples of a step, "
            f"batch_size={recipe.batch_size}: its parts are of one size"
        )
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
    if chosen.compile and reruns_trunk(method, method_options or {}):
        raise ValueError(
            f"{method} runs the trunk again at other parameters, which a compiled one does not "
            "allow; train without compile, or set source='representation'"
        )
    kind = type(problem)
    identity = {
        "schema": SCHEMA,
        "problem": problem.name,
        "problem_class": f"{kind.__module__}:{kind.__qualname__}",
        "problem_options": dict(problem.options),
        "method": method,
        "method_options": dict(method_options or {}),
        "seed": seed,
        "recipe": chosen.to_json(),
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
    device: Device = "cpu",
    tracker: str | None = None,
    shard: bool | None = None,
) -> Run:
    """Train one network and leave a run directory.

    The same arguments give the same numbers on the same machine with the same number of threads.
    A run that was stopped or killed goes on from its last checkpoint, with the threads it began
    with, and ends with the numbers of one that never was. A complete run is not trained again.

    Launched in several processes, by ``torchrun`` or ``accelerate launch``, each calls this with
    the same arguments and takes its slice of every batch; the first one writes the files. The
    numbers are those of one process, but for rounding, dropout and batch norm: see
    ``docs/training.md``.

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
            :func:`ntkmtl.bench.training.scores.read_baseline` reads it. A resumed run keeps the one
            that it began with. Other methods do not look at it.
        threads: Threads that torch computes with, all cores if None.
        checkpoint_seconds: Least time between two checkpoints. Where writing one takes long, they
            are spaced so that they take at most a twentieth of the time.
        progress: Called after every step with the steps done and their total number.
        should_stop: Asked after every step; True writes a checkpoint and stops. If None, Ctrl-C and
            SIGTERM do so.
        record: ``every``, ``source`` and ``minibatches`` of a record of the kernel over training,
            written to ``record.json``; see
            :func:`ntkmtl.bench.training.recording.record_settings`. None for no record. It
            changes none of the run's numbers.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU where there is one.
        tracker: Where losses, task weights, eigenvalues and metrics are logged while it trains: a
            key of :data:`ntkmtl.bench.training.accelerating.TRACKERS`, None for nowhere.
        shard: With several processes, spread the parameters and the optimiser's state over them
            between steps, by FSDP2, instead of keeping all of them on each; see
            ``docs/training.md``. As ``accelerate launch`` was told if None.

    Returns:
        The complete run.

    Raises:
        RunBusyError: Another process is training in ``out_dir``.
        RunConflictError: ``out_dir`` holds a run with another configuration.
        RunFileError: A file in ``out_dir`` is damaged.
        RunInterrupted: The run was stopped on request.
        DeviceError: The device is not there, or cannot compute in the recipe's precision.
        MissingExtraError: The tracker is not installed, or accelerate where it is needed.
        ValueError: The parts do not fit each other, or the method needs a baseline and got none.
        NonFiniteError: A loss or gradient became NaN or infinite. The checkpoint is from before
            that step.
        FloatingPointError: A metric became NaN or infinite.
    """
    folder = Path(out_dir)
    check_tracker(tracker)
    place = choose_device(device)
    shards = told_to_shard() if shard is None else shard
    with (
        processes(place, accelerated=tracker is not None, shards=shards) as team,
        contextlib.ExitStack() as locked,
    ):

        def ask() -> tuple[dict[str, Any], dict[str, Any] | None]:
            identity = run_identity(
                problem,
                method,
                seed,
                recipe=recipe,
                method_options=method_options,
                single_task=single_task,
            )
            chosen = Recipe(**identity["recipe"])
            if team.size > 1:
                check_launch(chosen.precision)
                _check_processes(team.size, identity, record)
            if team.shards:
                _check_sharding(identity)
            return identity, record_settings(record, chosen)

        identity, settings = team.everyone(ask)

        def begin() -> tuple[Run | None, dict[str, Any] | None]:
            if (done := _complete(folder, identity, settings)) is not None:
                return done, None
            locked.enter_context(alone_in(folder))
            # Another process may have completed it while this one waited.
            if (done := _complete(folder, identity, settings)) is not None:
                return done, None
            _remove_leftovers(folder)
            checkpoint = usable_checkpoint(
                folder / CHECKPOINT,
                lambda state: _why_unusable(folder, state, identity, settings),
            )
            if checkpoint is not None:
                _same_place(folder, checkpoint, team)
            return None, checkpoint

        done, checkpoint = team.from_first(begin)
        if done is not None:
            return done
        if checkpoint is not None:
            threads = checkpoint["threads"]
            baseline = checkpoint.get("baseline")
        compiles = bool(identity["recipe"].get("compile", False))
        with reproducible(threads or cores(), team.device), buffers_kept(compiles):

            def make() -> _Training:
                training = _Training(
                    problem,
                    identity,
                    single_task,
                    torch.get_num_threads(),
                    settings,
                    baseline,
                    team,
                )
                if checkpoint is not None:
                    training.load_state_dict(checkpoint)
                elif team.first:
                    write_json(folder / CONFIG, training.config.to_json())
                if tracker is not None and team.first:
                    training.track(tracker, folder, again=checkpoint is not None)
                return training

            training = team.everyone(make)
            training.prepare()
            with contextlib.ExitStack() as signals:
                if should_stop is None:
                    should_stop = signals.enter_context(stop_requests())
                try:
                    training.run(folder, checkpoint_seconds, progress, should_stop)
                finally:
                    training.close()
        return team.from_first(lambda: load_run(folder))


def _check_processes(
    size: int, identity: Mapping[str, Any], record: Mapping[str, Any] | None
) -> None:
    """Refuse what several processes cannot share.

    Raises:
        ValueError: The batch cannot be cut into equal slices, the method works in one process only,
            or a record is asked for.
    """
    recipe, method = Recipe(**identity["recipe"]), identity["method"]
    pieces = size * recipe.accumulate
    if recipe.batch_size % pieces:
        raise ValueError(
            f"the {recipe.batch_size} samples of a step cannot be cut into {pieces} equal slices, "
            f"one for each of {size} processes"
            + (f" and {recipe.accumulate} parts" if recipe.accumulate > 1 else "")
            + "; change batch_size or the number of processes"
        )
    if spec(method).requires == "jacobian" or create(method).has_head_objective:
        raise ValueError(
            f"{method} works on the gradients entry by entry, or on those of the heads, in a "
            f"single process only; {size} were launched"
        )
    if record is not None:
        raise ValueError(f"the kernel is recorded in a single process only; {size} were launched")
    _share_of_minibatches(method, identity["method_options"], size)


def _check_sharding(identity: Mapping[str, Any]) -> None:
    """Refuse what does not go with parameters that are spread over processes.

    Raises:
        ValueError: The method reads gradients of whole parameters, or the recipe compiles, or
            scales gradients.
    """
    recipe, method = Recipe(**identity["recipe"]), identity["method"]
    settings = {**spec(method).defaults, **identity["method_options"]}
    source = settings.get("source", "exact")
    if spec(method).requires != "losses" and source != "representation":
        raise ValueError(
            f"{method} with source={source!r} works with the whole of the shared parameters or "
            "their gradients, k n of them, which spreading the parameters (FSDP) is to avoid; "
            "set source='representation', or train without FSDP"
        )
    if recipe.compile or recipe.precision == "fp16":
        raise ValueError(
            "parameters are not spread over processes (FSDP) together with compile, or with the "
            f"gradient scaler of fp16; found compile={recipe.compile} and precision "
            f"{recipe.precision}"
        )


def _share_of_minibatches(
    method: str, options: Mapping[str, Any], size: int
) -> tuple[dict[str, Any], int | None]:
    """Return a method's options with the mini-batches that one process takes.

    The kernel counts the mini-batches of every process. Methods that read the Gramian take the
    mean over them, whatever their number.

    Returns:
        The options, and the number of mini-batches that all of them are to be joined to where each
        process has a part of one; else None.

    Raises:
        ValueError: They cannot be shared out.
    """
    own = dict(options)
    if size == 1 or spec(method).requires not in ("eigenvalues", "kernel"):
        return own, None
    n = own.get("minibatches", spec(method).defaults.get("minibatches", 1))
    if n % size == 0:
        return {**own, "minibatches": n // size}, None
    if size % n == 0:
        return {**own, "minibatches": 1}, n
    raise ValueError(
        f"the kernel of {n} mini-batches cannot be shared out to {size} processes: one number must "
        "be a multiple of the other; change minibatches or the number of processes"
    )


def _same_place(folder: Path, checkpoint: Mapping[str, Any], team: Team) -> None:
    """Refuse to go on in other circumstances, where nothing could be equal to what it was.

    Raises:
        RunConflictError: The device or the number of processes is another.
    """
    usual = {"device": "cpu", "processes": 1, "sharded": False}
    written = {key: checkpoint.get(key, value) for key, value in usual.items()}
    here = {"device": team.device.type, "processes": team.size, "sharded": team.shards}
    found = differences(written, here)
    if found:
        raise RunConflictError(folder / CHECKPOINT, found)


def _complete(
    folder: Path, identity: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> Run | None:
    """Return the run of a folder if it is the one asked for and complete.

    Raises:
        RunConflictError: The folder holds another run.
        RunFileError: A file in it is damaged.
    """
    if not (folder / CONFIG).exists():
        # A result without a configuration is what is left of a run that was being removed.
        (folder / RESULT).unlink(missing_ok=True)
        return None
    found = differences(read_config(folder / CONFIG).identity(), identity)
    if found:
        raise RunConflictError(folder, found)
    if not (folder / RESULT).exists():
        return None
    found = record_differences(folder / RECORD, settings)
    if found:
        raise RunConflictError(folder, found)
    for name in (CHECKPOINT, PREVIOUS, FAILURE):
        (folder / name).unlink(missing_ok=True)
    return load_run(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left of files that it had not finished writing."""
    for name in FILES:
        for leftover in folder.glob(f".{name}.*.tmp"):
            leftover.unlink(missing_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)


def _why_unusable(
    folder: Path,
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
) -> str | None:
    if not (folder / CONFIG).exists():
        return f"stands without {CONFIG}"
    written = state.get("identity"), state.get("versions")
    if written != (canonical_json(identity), versions()):
        return f"was written by another version or for another run ({written[1]})"
    recorded = state.get("record_settings")
    if settings is not None and recorded != settings:
        return f"was written with another record ({recorded})"
    return None


def reruns_trunk(method: str, options: Mapping[str, Any]) -> bool:
    """Return whether a Balancer with these options needs to be given the trunk."""
    source = options.get("source", spec(method).defaults.get("source"))
    return source in ("probe", "auto")


class _Pass(nn.Module):
    """From a batch to the outputs, as the forward of one module: what DDP wraps.

    Args:
        model: The network.
        represent: Its trunk.
        heads: Number of heads.
        shards: Whether the parameters are to be spread over processes.

    Attributes:
        views: What the heads read in the last pass.
        outputs: One output per head of the last pass.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        represent: Callable[[Any], Any],
        heads: int,
        shards: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = heads
        self.shards = shards
        self.outputs: list[Tensor] = []
        # In a tuple, as a module would be registered a second time.
        self._represent = (represent,)
        self.views: Any = None

    def forward(self, batch: Any) -> Any:
        """Return one output per head, or a number to end the step with where parameters are spread.

        FSDP starts to exchange gradients in a backward pass from what it is shown here. A kernel
        takes several passes, and not always as many on each process: it is shown a zero that
        depends on one parameter, and a pass from there follows when all gradients are there.
        """
        features = self._represent[0](batch)
        # A view of the features per head lets one engine call find every head's gradient.
        self.views = branch(features, self.heads) if isinstance(features, Tensor) else features
        self.outputs = self.model.predict(self.views)
        if not self.shards:
            return self.outputs
        first = next(p for p in self.model.parameters() if p.requires_grad)
        return first.flatten()[:1].sum() * 0.0


@dataclass(frozen=True)
class _Part:
    """What is kept of a part of a step.

    Attributes:
        batch: Its samples.
        losses: The losses of the tasks with labels, by position.
        balanced: What the Balancer found.
    """

    batch: Any
    losses: dict[int, Tensor]
    balanced: BalanceResult


@dataclass(frozen=True)
class _Before:
    """What a step changes before it is known whether it will be taken.

    Attributes:
        random: State of torch's generator on the CPU.
        cuda: The same on the GPU, None without one.
        buffers: Of the network, as running means of batch norm.
        balancer: Of the balancer.
    """

    random: Tensor
    cuda: Tensor | None
    buffers: list[Tensor]
    balancer: dict[str, Any]


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
        team: Team | None = None,
    ) -> None:
        self.team = team or Team(torch.device("cpu"))
        self.device = self.team.device
        self.problem = problem
        self.identity = identity
        self.recipe = Recipe(**identity["recipe"])
        self.seed: int = identity["seed"]
        self.threads = threads
        # None, not all names: a problem may treat "all tasks" by a faster path.
        self.chosen = None if single_task is None else (single_task,)
        self.tasks: tuple[str, ...] = tuple(identity["tasks"])
        self.metrics = tuple(RunMetric(**metric) for metric in identity["metrics"])
        self.arithmetic = Arithmetic(self.recipe.precision, self.device)
        self.steps_per_epoch = steps_per_epoch(problem, self.recipe)
        self.total_steps = self.steps_per_epoch * self.recipe.epochs

        torch.manual_seed(self.seed)
        self.model = problem.model(self.chosen)
        if self.device.type != "cpu":
            self.model.to(self.device)
        self.record_settings = None if record is None else dict(record)
        self.recorder = None if record is None else Recorder(**record)
        options, joined = _share_of_minibatches(
            identity["method"], identity["method_options"], self.team.size
        )
        represent: Callable[[Any], Any] = self.model.represent
        if reruns_trunk(identity["method"], options):
            trunk = RememberInputs(self.model, "represent")
            options |= {"trunk": trunk, "shared": list(self.model.shared_parameters())}
            represent = trunk
        elif self.model.private_below and not self.team.shards:
            # Else the exact kernel would be that of all below the representations.
            options["shared"] = list(self.model.shared_parameters())
        options |= {"tasks": list(self.tasks), "record": self.recorder}
        self.balancer = (
            Balancer(identity["method"], **options)
            if joined is None
            else JoiningBalancer(identity["method"], joined, **options)
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
            versions=versions() | problem_version(type(problem)),
            hardware=hardware(threads, self.device, self.team.size)
            | ({"sharded": True} if self.team.shards else {}),
            baseline=self.baseline,
        )
        self._make_optimizer()
        if self.recipe.compile:
            represent = compiled(represent, self.device)
            compile_heads(self.model)
        self.passing = _Pass(self.model, represent, len(self.tasks), self.team.shards)
        self.forward: nn.Module = self.passing
        self.evaluated: MultiTaskModel = (
            self.model if self.device.type == "cpu" else Evaluated(self.model, self.device)
        )
        self.tracker: Tracker | None = None
        self.before: _Before | None = None
        if self.team.rank > 0:
            # Dropout and augmentation are of each process's own.
            torch.manual_seed(_number(f"process {self.seed} {self.team.rank}"))

        self.step = 0
        self.history: list[Epoch] = []
        self.tested: list[tuple[float, ...]] = []
        self.loss_sums = [0.0] * len(self.tasks)
        self.loss_counts = [0] * len(self.tasks)
        self.epoch_seconds = 0.0
        self.wall_seconds = 0.0
        self.skipped = 0
        self.overflowed = 0
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

    def prepare(self) -> None:
        """Make ready for several processes, once the network has the values that it begins with."""
        if not self.team.shards:
            self.forward = self.team.prepare(self.forward)
            return
        # Other tensors take the parameters' places.
        optimizer, schedule = self.optimizer.state_dict(), self.learning_rate.state_dict()
        self.forward = self.team.prepare(self.forward)
        self._make_optimizer()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.load_state_dict(spread_like(optimizer, parameters))
        self.learning_rate.load_state_dict(schedule)

    def track(self, name: str, folder: Path, *, again: bool) -> None:
        """Log by a tracker.

        Args:
            name: Its name.
            folder: The run's folder.
            again: Whether the run goes on.
        """
        if not again:
            # What a run that was replaced had logged would stand among this one's.
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        about = {key: self.identity[key] for key in ("problem", "method", "seed")}
        title = " ".join(map(str, about.values()))
        self.tracker = Tracker(name, folder, {**about, **self.identity["recipe"]}, title)

    def close(self) -> None:
        """Let go of what is open."""
        if self.tracker is not None:
            self.tracker.finish()

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
                try:
                    self._train_step(indices)
                except NonFiniteError as error:
                    self.wall_seconds = time.monotonic() - started
                    self._write(folder, self.state_dict(self.before))
                    raise known_to_all(error)  # noqa: B904  (the same error)
                except FloatingPointError as error:
                    raise known_to_all(error)  # noqa: B904  (the same error)
                if progress is not None:
                    progress(self.step, self.total_steps)
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch()
                stop, due = self.team.flags(
                    should_stop(), self.team.first and time.monotonic() >= next_checkpoint
                )
                if stop or due:
                    begun = time.monotonic()
                    self.wall_seconds = begun - started
                    self._write(folder, self.state_dict())
                    now = time.monotonic()
                    next_checkpoint = now + max(checkpoint_seconds, 20 * (now - begun))
                if stop:
                    raise known_to_all(
                        RunInterrupted(f"stopped after step {self.step} of {self.total_steps}")
                    )
        self.team.from_first(lambda: self._finish(folder, started))

    def _write(self, folder: Path, state: Mapping[str, Any]) -> None:
        def write() -> None:
            write_checkpoint(folder / CHECKPOINT, state, keep_previous=True)

        self.team.from_first(write)

    def _before_step(self) -> _Before:
        return _Before(
            random=torch.get_rng_state(),
            cuda=self._cuda_random(),
            buffers=self._buffers(),
            balancer=self.balancer.state_dict(),
        )

    def _cuda_random(self) -> Tensor | None:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def _rest_of_epoch(self) -> Iterator[Tensor]:
        epoch, done = divmod(self.step, self.steps_per_epoch)
        # An epoch's order is a function of seed and epoch alone: nothing of it has to be saved.
        generator = torch.Generator().manual_seed(_number(f"order {self.seed} {epoch}"))
        order = batches(self.problem.size("train"), self.recipe.batch_size, generator)
        for number, indices in enumerate(order):
            if number >= done:
                yield indices

    def _train_step(self, indices: Tensor) -> None:
        started = time.perf_counter()
        self.before = before = self._before_step()
        self.optimizer.zero_grad(set_to_none=True)
        count = self.recipe.accumulate
        parts: list[_Part] = []
        try:
            for number in range(count):
                rows = self.team.share(indices, number, count)
                waits = number + 1 < count
                with self.team.without_sync(self.forward) if waits else contextlib.nullcontext():
                    parts.append(self._differentiate(rows, 1.0 / count, last=not waits))
            self._update(parts)
        except NonFiniteError as error:
            self._restore(before.buffers)
            if self.recipe.on_nonfinite == "stop":
                where = self._where(indices)
                raise NonFiniteError(
                    error.task, self.step, error.what, error.value, where
                ) from error
            self.skipped += 1
            parts = []
        self._note(parts)
        self.step += 1
        self.epoch_seconds += time.perf_counter() - started

    def _differentiate(self, rows: Tensor, scale: float, *, last: bool = True) -> _Part:
        """Add the gradients of some of a step's samples.

        Args:
            rows: The samples.
            scale: What the gradients are multiplied by.
            last: Whether the step has no more parts.

        Raises:
            NonFiniteError: A loss is not finite, or a gradient if it can be seen here.
        """
        batch = to_device(self.problem.batch("train", rows), self.device)
        with self.arithmetic.autocast():
            end = self.forward(batch)
        if not self.team.shards:
            return self._balance(batch, end, scale)
        try:
            part = self._balance(batch, self.passing.outputs, scale)
        except NonFiniteError:
            # On all processes. What there is of gradients need not be alike on them.
            for p in self.model.parameters():
                p.grad = None
            end.backward()
            raise
        if last:
            end.backward()
        return part

    def _balance(self, batch: Any, outputs: Sequence[Tensor], scale: float) -> _Part:
        """Weigh the losses of the last pass, and add their gradients."""
        losses = self.problem.losses(self.arithmetic.full(outputs), batch, self.chosen)
        known = {i: loss for i, t in enumerate(self.tasks) if (loss := losses.get(t)) is not None}
        if self.arithmetic.scaler is not None:
            # The Balancer leaves it to the scaler, which cannot mend losses by a smaller scale.
            self._require_finite(known)
        unreached = self._unreached(outputs, known) if self.team.size > 1 else None
        balanced = self.balancer.backward(
            losses,
            features=self.passing.views,
            counts=self.problem.counts(batch, self.chosen),
            scaler=self.arithmetic.scaler,
            scale=scale,
        )
        if unreached is not None:
            roots, parameters = unreached
            torch.autograd.backward(roots, [torch.zeros_like(r) for r in roots], inputs=parameters)
        return _Part(batch, {i: loss.detach() for i, loss in known.items()}, balanced)

    def _unreached(
        self, outputs: Sequence[Tensor], known: Mapping[int, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return outputs without a loss here and the parameters that only they depend on.

        DDP waits for a gradient of each parameter in each process, so these get zeros. Its own
        search for unused parameters hands out copies of the outputs, each of which depends on all
        heads: no gradient could be told from another.
        """
        missing = [output for i, output in enumerate(outputs) if i not in known]
        if not missing:
            return None
        reached, _ = leaves(known.values())
        own = [p for p in leaves(missing)[0] if p not in reached]
        return (missing, own) if own else None

    def _require_finite(self, losses: Mapping[int, Tensor]) -> None:
        values = {i: float(loss.detach()) for i, loss in losses.items()}
        bad = next(((i, value) for i, value in values.items() if not math.isfinite(value)), None)
        for found in self.team.gather(bad):
            if found is not None:
                raise NonFiniteError(self.tasks[found[0]], self.step, "loss", found[1])

    def _update(self, parts: Sequence[_Part]) -> None:
        """Take a step of the optimiser along the gradients of all parts.

        Raises:
            NonFiniteError: A gradient is not finite.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        scaler = self.arithmetic.scaler
        if scaler is None:
            # Not every method looks at gradients. A norm may overflow where no entry does.
            own = [local(g) for g in gradients] if self.team.shards else gradients
            finite = not own or (
                bool(torch.stack(torch._foreach_norm(own)).isfinite().all())
                or all(bool(g.isfinite().all()) for g in own)
            )
            if self.team.shards:
                # Each process sees its own part only.
                finite = not self.team.flags(not finite)[0]
            if not finite:
                raise self._culprit(parts)
        elif gradients:
            scaler.unscale_(self.optimizer)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.learning_rate.before_step(self.step)
        if (gradients or scaler is None) and not self.arithmetic.step(self.optimizer):
            self.overflowed += 1
            return
        if self.balancer.needs_after_step:
            self._look_after_step(parts[-1].batch)

    def _look_after_step(self, batch: Any) -> None:
        """Show the method the losses after a step, unless one of them is not finite.

        The step has been taken then and cannot be left out any more. What there is to learn from it
        is left out instead; if the network is beyond help the next step's losses will say so.
        """
        buffers = self._buffers()
        try:
            self.balancer.after_step(lambda: self._losses_again(batch))
        except NonFiniteError:
            self._restore(buffers)

    def _buffers(self) -> list[Tensor]:
        return [buffer.detach().clone() for buffer in self.model.buffers()]

    def _restore(self, buffers: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)

    def _losses_again(self, batch: Any) -> dict[str, Tensor | None]:
        with self.team.whole(self.forward):
            return self._losses_once_more(batch)

    def _losses_once_more(self, batch: Any) -> dict[str, Tensor | None]:
        with self.arithmetic.autocast():
            outputs = self.model.predict(self.model.represent(batch))
        return self.problem.losses(self.arithmetic.full(outputs), batch, self.chosen)

    def _culprit(self, parts: Sequence[_Part]) -> NonFiniteError:
        """Find the task whose gradient is not finite, by its gradient alone."""
        with self.team.whole(self.forward):
            return self._culprit_of(parts)

    def _culprit_of(self, parts: Sequence[_Part]) -> NonFiniteError:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        found: str | None = None
        for part in parts:
            losses = self._losses_once_more(part.batch)
            for task in self.tasks:
                loss = losses.get(task)
                if found is not None or loss is None:
                    continue
                gradients = torch.autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True
                )
                if not all(bool(g.isfinite().all()) for g in gradients if g is not None):
                    found = task
        named = next((task for task in self.team.gather(found) if task is not None), None)
        return NonFiniteError(
            " or ".join(self.tasks) if named is None else named, self.step, "gradient", math.nan
        )

    def _where(self, indices: Tensor) -> str:
        epoch, number = divmod(self.step, self.steps_per_epoch)
        rows = ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
        return (
            f"epoch {epoch}, batch {number} of {self.steps_per_epoch}, samples {rows} of the "
            "training split"
        )

    def _note(self, parts: Sequence[_Part]) -> None:
        """Keep what a step came to; one that was left out has no parts."""
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
        if self.step % self.stride:
            return
        read = [p.balanced.eigenvalues for p in parts if p.balanced.eigenvalues is not None]
        weights = _mean_row([part.balanced.weights for part in parts])
        self.row_steps.append(self.step)
        self.row_weights.append(torch.zeros(len(self.tasks)) if weights is None else weights)
        self.row_eigenvalues.append(_mean_row(read))
        if self.tracker is not None:
            self._log_step(means)

    def _log_step(self, losses: Sequence[float | None]) -> None:
        assert self.tracker is not None
        values = {f"loss/{t}": loss for t, loss in zip(self.tasks, losses, strict=True)}
        for kind, row in (
            ("weight", self.row_weights[-1]),
            ("eigenvalue", self.row_eigenvalues[-1]),
        ):
            if row is not None:
                for task, value in zip(self.tasks, row.tolist(), strict=True):
                    values[f"{kind}/{task}"] = value
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        known = {key: value for key, value in values.items() if value is not None}
        self.tracker.log(
            {key: value for key, value in known.items() if math.isfinite(value)}, self.step
        )

    def _end_epoch(self) -> None:
        started = time.perf_counter()
        epoch = self.step // self.steps_per_epoch - 1
        val = self._evaluate(self.split, epoch)
        if self.baseline is not None:
            scores = task_scores(val, self.baseline, self.metrics, self.tasks)
            self.balancer.weighting.observe(scores)
        self.balancer.end_epoch()
        sums = self.team.sums(self.loss_sums)
        counts = self.team.sums(self.loss_counts)
        means = [
            total / count if count else None for total, count in zip(sums, counts, strict=True)
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
        if self.tracker is not None:
            self.tracker.log(
                {f"{self.split}/{m.name}": x for m, x in zip(self.metrics, val, strict=True)},
                self.step - 1,
            )
        self.learning_rate.end_epoch(val)
        if epoch >= self.recipe.epochs - self.recipe.tested_epochs:
            self.tested.append(self._evaluate("test", epoch))
        self.loss_sums = [0.0] * len(self.tasks)
        self.loss_counts = [0] * len(self.tasks)
        self.epoch_seconds = 0.0

    def _evaluate(self, split: Split, epoch: int) -> tuple[float, ...]:
        # Running means of batch norm are each process's own: the first one's count.
        with self.team.whole(self.forward):
            return self.team.from_first(lambda: self._evaluate_here(split, epoch))

    def _evaluate_here(self, split: Split, epoch: int) -> tuple[float, ...]:
        values = self.problem.evaluate(self.evaluated, split, self.chosen)
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
        if self.skipped + self.overflowed >= self.step:
            raise FloatingPointError(
                f"none of {self.step} steps could be taken, as losses or gradients were not "
                "finite: the network is as it was made. Look at the data and the losses."
            )
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
            skipped_steps=self.skipped if self.recipe.on_nonfinite == "skip" else None,
            overflowed_steps=self.overflowed if self.recipe.precision == "fp16" else None,
        )
        write_json(folder / RESULT, result.to_json())
        remove_checkpoints(folder / CHECKPOINT)

    def _steps(self) -> Steps:
        read = self.row_eigenvalues
        blank = torch.full((len(self.tasks),), math.nan)
        return Steps(
            step=np.array(self.row_steps, dtype=np.int64),
            # None where the first step could not be taken.
            weights=torch.stack(self.row_weights).numpy()
            if self.row_weights
            else np.zeros((0, len(self.tasks)), dtype=np.float32),
            eigenvalues=None
            if all(row is None for row in read)
            else torch.stack([blank if row is None else row for row in read]).numpy(),
        )

    # -------------------------------------------------------------------------------------------
    # Checkpoints

    def state_dict(self, before: _Before | None = None) -> dict[str, Any]:
        """Return what a checkpoint holds.

        Args:
            before: What stood before a step that was begun and could not be taken.
        """
        steps = self._steps()
        own = {
            "random": torch.get_rng_state() if before is None else before.random,
            "cuda_random": self._cuda_random() if before is None else before.cuda,
            "balancer": self.balancer.state_dict() if before is None else before.balancer,
            "loss_sums": self.loss_sums,
            "loss_counts": self.loss_counts,
        }
        scaler = self.arithmetic.scaler
        return {
            "identity": canonical_json(self.identity),
            "versions": versions(),
            "threads": self.threads,
            "baseline": None if self.baseline is None else list(self.baseline),
            "model": self._gathered(dict(self.model.state_dict())),
            "optimizer": self._gathered(self.optimizer.state_dict()),
            "schedule": self.learning_rate.state_dict(),
            **own,
            "processes": self.team.size,
            "sharded": self.team.shards,
            "device": self.device.type,
            # What each process has of its own.
            "each": self.team.gather(own) if self.team.size > 1 else None,
            "scaler": None if scaler is None else scaler.state_dict(),
            "skipped": self.skipped,
            "overflowed": self.overflowed,
            "step": self.step,
            "history": [asdict(epoch) for epoch in self.history],
            "tested": [list(values) for values in self.tested],
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

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        return gathered(state) if self.team.shards else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = state if state.get("each") is None else state["each"][self.team.rank]
        self.model.load_state_dict(state["model"])
        self.balancer.load_state_dict(own["balancer"])
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
        self.loss_sums = list(own["loss_sums"])
        self.loss_counts = list(own["loss_counts"])
        if self.arithmetic.scaler is not None:
            self.arithmetic.scaler.load_state_dict(state["scaler"])
        self.skipped = state.get("skipped", 0)
        self.overflowed = state.get("overflowed", 0)
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
        torch.set_rng_state(own["random"])
        if own.get("cuda_random") is not None:
            torch.cuda.set_rng_state(own["cuda_random"], self.device)


def _number(text: str) -> int:
    """Return the seed that a text stands for."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _row(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32).clone()


def _mean_row(rows: Sequence[Tensor]) -> Tensor | None:
    """Return the mean of rows where they hold numbers, None of none."""
    if not rows:
        return None
    return _row(rows[0]) if len(rows) == 1 else torch.stack([_row(r) for r in rows]).nanmean(0)
