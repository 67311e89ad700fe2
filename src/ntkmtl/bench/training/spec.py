"""What one run is asked to be and to record, and what determines its numbers, checked early."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from ntkmtl import weighting
from ntkmtl.analysis import Recorder, RecordFileError
from ntkmtl.bench.compute.environment import source_digest
from ntkmtl.bench.problems._loading import wrong_type
from ntkmtl.bench.problems.base import (
    ChosenEpoch,
    OnNonFinite,
    Precision,
    Problem,
    Recipe,
    Schedule,
    Split,
)
from ntkmtl.bench.runs import SCHEMA, SINGLE_TASK
from ntkmtl.bench.training.comparison import whole_seed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ntkmtl.bench.compute.device import Device

__all__ = [
    "RunSpec",
    "combines_entries",
    "method_source",
    "record_differences",
    "record_settings",
    "reruns_trunk",
    "run_identity",
    "steps_per_epoch",
    "total_steps",
]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What one run of a problem is asked to be.

    A new option is a field here, a flag of the command, and the place that uses it: everything in
    between passes the whole.

    Attributes:
        method: Name of the method, given to :class:`ntkmtl.Balancer`.
        seed: Seed of the initial weights, of the order of the data, and of all random draws.
        recipe: How long and how the network is trained; the problem's own recipe if None.
        method_options: Options given to :class:`ntkmtl.Balancer`.
        single_task: The task of a single-task baseline, whose method is ``"stl"``.
        baseline: For methods that learn from scores after each epoch
            (:attr:`ntkmtl.weighting.Weighting.needs_scores`): metrics of the single-task networks
            of the same seed on the validation split, one number per metric, as
            :func:`ntkmtl.bench.training.baselines.read_baseline` reads them. A resumed run keeps
            the baseline that it began with. Other methods ignore it.
        threads: Threads that torch computes with; ``OMP_NUM_THREADS`` or all cores if None. A
            resumed run keeps the number that it began with.
        checkpoint_seconds: Least time between two checkpoints. Where writing one takes long, they
            are spaced so that they take at most a twentieth of the time.
        record: ``every``, ``source`` and ``minibatches`` of a record of the kernel over training,
            written to ``record.json``; see
            :func:`ntkmtl.bench.training.spec.record_settings`. None for no record. It
            changes none of the run's numbers.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU if there is one.
        tracker: What logs losses, task weights, eigenvalues and metrics during training: a key of
            :data:`ntkmtl.bench.training.log.TRACKERS`, None for nothing.
        keep_model: Whether the run keeps its trained network, ``model.safetensors``. A run that is
            complete stays as it is either way.
    """

    method: str
    seed: int
    recipe: Recipe | None = None
    method_options: Mapping[str, Any] | None = field(default=None)
    single_task: str | None = None
    baseline: Sequence[float] | None = None
    threads: int | None = None
    checkpoint_seconds: float = 5.0
    record: Mapping[str, Any] | None = None
    device: Device = "cpu"
    tracker: str | None = None
    keep_model: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_seed(self.seed))


# ------------------------------------------------------------------------------------------------
# What determines the numbers of a run


_SPLITS: tuple[Split, ...] = ("train", "val", "test")


def run_identity(
    problem: Problem,
    method: str,
    seed: int,
    *,
    recipe: Recipe | None = None,
    method_options: Mapping[str, Any] | None = None,
    single_task: str | None = None,
) -> dict[str, Any]:
    """Return what determines a run's numbers: everything in ``config.json`` except its provenance.

    Args:
        problem: What is trained.
        method: Name of the method.
        seed: Seed, not negative.
        recipe: How long it is trained; the problem's own if None.
        method_options: Options given to :class:`ntkmtl.Balancer`.
        single_task: The task of a single-task baseline, whose method is ``"stl"``.

    Raises:
        ValueError: The parts do not fit each other, or an option is not a JSON value.
    """
    if isinstance(problem, str):
        raise ValueError(
            f"a problem must be made, as problems.create({problem!r}, ...) does. Found its name."
        )
    chosen, seed = recipe or problem.recipe, whole_seed(seed)
    options = dict(method_options or {})
    _require_consistent(problem, method, chosen, options, single_task)
    kind = type(problem)
    identity = {
        "schema": SCHEMA,
        "problem": problem.name,
        "problem_class": f"{kind.__module__}:{kind.__qualname__}",
        "problem_options": dict(problem.options),
        "method": method,
        "method_options": options,
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
    if source := method_source(method):
        identity["method_source"] = source
    try:
        # As it is read back from config.json.
        found: dict[str, Any] = json.loads(json.dumps(identity, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the options of {problem.name} and {method} must be JSON values: {error}"
        ) from error
    return found


def method_source(name: str) -> str:
    """Return a digest of the source of a method that is not of this package, else nothing.

    It covers the files that the class is made of: its own, those of its base classes, and what they
    import from beside them.

    Raises:
        ValueError: No file defines the class.
    """
    if ":" not in name:
        return ""
    digest = source_digest(weighting.load(name))
    if not digest:
        raise ValueError(
            f"the class of {name} is defined in no file, so that nobody could tell its runs from "
            "those of another version: put it into a file, and name it path/file.py:ClassName"
        )
    return digest[:12]


def _require_consistent(
    problem: Problem,
    method: str,
    recipe: Recipe,
    options: Mapping[str, Any],
    single_task: str | None,
) -> None:
    """Check that the parts of a run fit each other.

    Raises:
        ValueError: They do not.
    """
    if (method == SINGLE_TASK) != (single_task is not None):
        raise ValueError(
            f"method {SINGLE_TASK!r} trains one task, the others all of them. "
            f"Found method={method!r} with single_task={single_task!r}."
        )
    if single_task is not None and single_task not in problem.tasks:
        raise ValueError(
            f"{problem.name} has no task {single_task!r}; it has {', '.join(problem.tasks)}."
        )
    steps_per_epoch(problem, recipe)
    n = options.get("minibatches", weighting.spec(method).defaults.get("minibatches", 1))
    _check_minibatches(f"{method} needs", n, recipe)
    if recipe.lbfgs_steps and combines_entries(method):
        raise ValueError(
            f"{method} does more than weigh whole gradients, so there is no weighted loss that "
            "L-BFGS could compare in its line search; train it with lbfgs_steps=0"
        )
    if recipe.compile and reruns_trunk(method, options):
        raise ValueError(
            f"{method} runs the trunk again at other parameters, which a compiled one does not "
            "allow; train without compile, or set source='representation'"
        )


def _check_minibatches(who: str, n: Any, recipe: Recipe) -> None:
    """Refuse more mini-batches than samples, whichever the method cuts into them."""
    samples = recipe.batch_size // recipe.accumulate
    if isinstance(n, int) and n > samples:
        raise ValueError(
            f"{who} minibatches={n}, which must be at most the number of samples of a pass, "
            f"{samples} (batch_size={recipe.batch_size}"
            + (f" in {recipe.accumulate} parts)" if recipe.accumulate > 1 else ")")
        )


def combines_entries(method: str) -> bool:
    """Return whether a method does more than weigh whole gradients."""
    needs = weighting.spec(method).requires
    return needs == "jacobian" or weighting.create(method).has_head_objective


def reruns_trunk(method: str, options: Mapping[str, Any]) -> bool:
    """Return whether a Balancer with these options needs to be given the trunk."""
    source = options.get("source", weighting.spec(method).defaults.get("source"))
    return source in ("probe", "auto")


def steps_per_epoch(problem: Problem, recipe: Recipe) -> int:
    """Return the number of whole batches in the training split.

    Raises:
        ValueError: The recipe makes no sense for the problem.
    """
    _check_recipe(recipe)
    if recipe.schedule == "plateau":
        _check_plateau(problem, recipe)
    size = problem.size("train")
    if size < recipe.batch_size:
        raise ValueError(
            f"batch_size must be at most {size}, the size of the training split. "
            f"Found {recipe.batch_size}."
        )
    return size // recipe.batch_size


def _check_recipe(recipe: Recipe) -> None:
    """Refuse settings of a recipe that make no sense for any problem.

    Raises:
        ValueError: One is unknown, of another type or out of range.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe. Found {recipe!r:.60}.")
    if wrong := wrong_type(recipe):
        raise ValueError(f"{wrong}.")
    for name in ("epochs", "batch_size", "tested_epochs"):
        if getattr(recipe, name) < 1:
            raise ValueError(f"{name} must be at least 1. Found {getattr(recipe, name)}.")
    for name, known in (
        ("schedule", Schedule),
        ("precision", Precision),
        ("on_nonfinite", OnNonFinite),
        ("chosen_epoch", ChosenEpoch),
    ):
        value, names = getattr(recipe, name), get_args(known)
        if value not in names:
            raise ValueError(f"{name} must be one of {', '.join(names)}. Found {value!r}.")
    for name, least in (("accumulate", 1), ("lbfgs_steps", 0)):
        value = getattr(recipe, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}. Found {value!r}.")
    if not 0 < recipe.learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive. Found {recipe.learning_rate}.")
    if not 0 <= recipe.weight_decay < math.inf:
        raise ValueError(f"weight_decay must be 0 or more. Found {recipe.weight_decay}.")
    if not 0 <= recipe.clip < math.inf:
        raise ValueError(f"clip must be a norm, or 0 for none. Found {recipe.clip}.")
    if recipe.chosen_epoch == "validation" and recipe.tested_epochs != 1:
        raise ValueError(
            "chosen_epoch='validation' tests the network of one epoch: tested_epochs must be 1. "
            f"Found {recipe.tested_epochs}."
        )
    if recipe.batch_size % recipe.accumulate:
        raise ValueError(
            f"accumulate={recipe.accumulate} must divide the samples of a step, "
            f"batch_size={recipe.batch_size}: its parts are of one size"
        )
    usual = {"precision": "fp32", "accumulate": 1, "clip": 0.0, "weight_decay": 0.0}
    for name, value in usual.items():
        if recipe.lbfgs_steps and getattr(recipe, name) != value:
            raise ValueError(
                f"L-BFGS evaluates the loss itself, in single precision: {name} must be {value}. "
                f"Found {getattr(recipe, name)}."
            )


def _check_plateau(problem: Problem, recipe: Recipe) -> None:
    """Check the settings of the schedule ``plateau``.

    Raises:
        ValueError: One is out of range, or the problem has nothing to measure Delta-m against.
    """
    if not 0 < recipe.plateau_factor < 1:
        raise ValueError(f"plateau_factor must be in (0, 1). Found {recipe.plateau_factor}.")
    if recipe.plateau_patience < 0:
        raise ValueError(f"plateau_patience must not be negative. Found {recipe.plateau_patience}.")
    if not 0 <= recipe.min_learning_rate < math.inf:
        raise ValueError(
            f"min_learning_rate must not be negative. Found {recipe.min_learning_rate}."
        )
    if problem.reference is None or len(problem.reference) != len(problem.metrics):
        found = "none" if problem.reference is None else f"{len(problem.reference)}"
        raise ValueError(
            f"the schedule 'plateau' needs {problem.name}.reference, one number for each of its "
            f"{len(problem.metrics)} metrics. Found {found}."
        )


def total_steps(problem: Problem, recipe: Recipe) -> int:
    """Return the number of steps of a run, those of L-BFGS included.

    Raises:
        ValueError: The recipe makes no sense for the problem.
    """
    return recipe.epochs * steps_per_epoch(problem, recipe) + recipe.lbfgs_steps


# ------------------------------------------------------------------------------------------------
# What is recorded of the kernel


def record_settings(record: Mapping[str, Any] | None, recipe: Recipe) -> dict[str, Any] | None:
    """Return the settings of a run's recorder, the same for every method.

    A Balancer would read its own method's kernel, so that records of two methods could not be
    compared. Here all are of one kind: of the features joined with the features' own kernel, which
    is the closest to the exact one at no cost, or of the shared parameters if so asked.

    Args:
        record: ``every``, ``source`` and ``minibatches`` as far as the user gave them; None if
            nothing is to be recorded.
        recipe: Gives the number of mini-batches.

    Raises:
        ValueError: A setting is unknown or out of range.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.1, minibatches=2)
        >>> record_settings({"every": 5}, recipe)
        {'every': 5, 'source': 'representation', 'minibatches': 2, 'pooling': 'kernel'}
    """
    if record is None:
        return None
    if not isinstance(record, Mapping):
        raise ValueError(f"record must be a dict, as {{'every': 50}}. Found {record!r}.")
    unknown = sorted(set(record) - {"every", "source", "minibatches"})
    if unknown:
        raise ValueError(f"a record has no setting {', '.join(unknown)}")
    source = record.get("source") or "representation"
    if source not in ("representation", "exact"):
        raise ValueError(f"source must be representation or exact. Found {source!r}.")
    settings = {
        "every": record.get("every", 50),
        "source": source,
        "minibatches": record.get("minibatches") or recipe.minibatches,
        "pooling": "kernel" if source == "representation" else None,
    }
    Recorder(**settings)
    _check_minibatches("the record of the kernel has", settings["minibatches"], recipe)
    return settings


def record_differences(path: Path, settings: Mapping[str, Any] | None) -> list[str]:
    """Return what is wrong with the record of a complete run; nothing if none is asked for.

    Args:
        path: Where the record is to be.
        settings: What :func:`record_settings` returned.
    """
    if settings is None:
        return []
    try:
        found = Recorder.load(path)
    except FileNotFoundError:
        return ["it was trained without a record, asked for one"]
    except RecordFileError as error:
        return [str(error)]
    return [
        f"record.{key} is {getattr(found, key)}, asked for {value}"
        for key, value in settings.items()
        if getattr(found, key) != value
    ]
