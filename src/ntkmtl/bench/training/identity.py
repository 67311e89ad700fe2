"""Identity of a run: what determines its numbers, checked before work begins."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from ntkmtl.bench.problems.base import (
    ChosenEpoch,
    OnNonFinite,
    Precision,
    Problem,
    Recipe,
    Schedule,
    Split,
)
from ntkmtl.bench.runs import SCHEMA, SINGLE_TASK, canonical_json
from ntkmtl.bench.training.comparison import method_source
from ntkmtl.weighting import create, spec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "check_recipe",
    "check_schedule",
    "combines_entries",
    "reruns_trunk",
    "run_identity",
    "steps_per_epoch",
    "total_steps",
]

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


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


def check_schedule(problem: Problem, recipe: Recipe) -> None:
    """Check the schedule of a recipe.

    Raises:
        ValueError: The schedule is unknown, its settings make no sense, or a plateau is asked for
            and the problem has nothing to measure Delta-m against.
    """
    known = get_args(Schedule)
    if recipe.schedule not in known:
        raise ValueError(f"schedule must be one of {', '.join(known)}. Found {recipe.schedule!r}.")
    if recipe.tested_epochs < 1:
        raise ValueError(f"tested_epochs must be at least 1. Found {recipe.tested_epochs}.")
    if recipe.schedule != "plateau":
        return
    if not 0 < recipe.plateau_factor < 1:
        raise ValueError(f"plateau_factor must be in (0, 1). Found {recipe.plateau_factor}.")
    if recipe.plateau_patience < 0:
        raise ValueError(f"plateau_patience must not be negative. Found {recipe.plateau_patience}.")
    if not (math.isfinite(recipe.min_learning_rate) and recipe.min_learning_rate >= 0):
        raise ValueError(
            f"min_learning_rate must not be negative. Found {recipe.min_learning_rate}."
        )
    if problem.reference is None or len(problem.reference) != len(problem.metrics):
        found = "none" if problem.reference is None else f"{len(problem.reference)}"
        raise ValueError(
            f"the schedule 'plateau' needs {problem.name}.reference, one number for each of its "
            f"{len(problem.metrics)} metrics. Found {found}."
        )


def check_recipe(recipe: Recipe) -> None:
    """Refuse settings of a recipe that make no sense.

    Raises:
        ValueError: One is unknown or out of range.
    """
    for name, known in (
        ("precision", Precision),
        ("on_nonfinite", OnNonFinite),
        ("chosen_epoch", ChosenEpoch),
    ):
        value, names = getattr(recipe, name), get_args(known)
        if value not in names:
            raise ValueError(f"{name} must be one of {', '.join(names)}. Found {value!r}.")
    parts = recipe.accumulate
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ValueError(f"accumulate must be a whole number of at least 1. Found {parts!r}.")
    if not 0 <= recipe.weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be 0 or more. Found {recipe.weight_decay}.")
    if recipe.chosen_epoch == "validation" and recipe.tested_epochs != 1:
        raise ValueError(
            "chosen_epoch='validation' tests the network of one epoch: tested_epochs must be 1. "
            f"Found {recipe.tested_epochs}."
        )
    if not 0 <= recipe.clip < float("inf"):
        raise ValueError(f"clip must be a norm, or 0 for none. Found {recipe.clip}.")
    _check_lbfgs(recipe)


def _check_lbfgs(recipe: Recipe) -> None:
    steps = recipe.lbfgs_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"lbfgs_steps must be a whole number of at least 0. Found {steps!r}.")
    usual = {"precision": "fp32", "accumulate": 1, "clip": 0.0, "weight_decay": 0.0}
    for name, value in usual.items():
        if steps and getattr(recipe, name) != value:
            raise ValueError(
                f"L-BFGS evaluates the loss itself, in single precision: {name} must be {value}. "
                f"Found {getattr(recipe, name)}."
            )


def total_steps(problem: Problem, recipe: Recipe) -> int:
    """Return the number of steps of a run, those of L-BFGS included.

    Raises:
        ValueError: The recipe makes no sense for the problem.
    """
    return recipe.epochs * steps_per_epoch(problem, recipe) + recipe.lbfgs_steps


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
        ValueError: The parts do not fit each other, or an option is no JSON value.
    """
    chosen = recipe or problem.recipe
    options = dict(method_options or {})
    _require_consistent(problem, method, seed, chosen, options, single_task)
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
        found: dict[str, Any] = json.loads(canonical_json(identity))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the options of {problem.name} and {method} must be JSON values: {error}"
        ) from error
    return found


def _require_consistent(
    problem: Problem,
    method: str,
    seed: int,
    recipe: Recipe,
    options: Mapping[str, Any],
    single_task: str | None,
) -> None:
    """Check that the parts of a run fit each other.

    Raises:
        ValueError: They do not.
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
    steps_per_epoch(problem, recipe)
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


def combines_entries(method: str) -> bool:
    """Return whether a method does more than weigh whole gradients."""
    return spec(method).requires == "jacobian" or create(method).has_head_objective


def reruns_trunk(method: str, options: Mapping[str, Any]) -> bool:
    """Return whether a Balancer with these options needs to be given the trunk."""
    source = options.get("source", spec(method).defaults.get("source"))
    return source in ("probe", "auto")
