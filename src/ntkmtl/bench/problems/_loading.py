"""Problems that a user names by module or by file: importing them, and trying them out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from ntkmtl import loading
from ntkmtl.loading import LoadError, place_of

if TYPE_CHECKING:
    from torch import Tensor

    from ntkmtl.bench.problems.base import MultiTaskModel, Problem, Split

T = TypeVar("T")

PAGE = "docs/problems/own-problem.md"


class ProblemError(ValueError):
    """A problem cannot be imported, or does not keep the protocol of problems."""


def load_class(name: str) -> type[Problem]:
    """Import the problem that ``module.path:ClassName`` or ``path/to/file.py:ClassName`` names.

    See :func:`ntkmtl.loading.load_class`.

    Raises:
        ProblemError: It cannot be imported, is not a problem, or leaves a method out.

    Example:
        >>> load_class("no_module:Toy")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ntkmtl...ProblemError: problem no_module:Toy: No module named 'no_module'
    """
    from ntkmtl.bench.problems.base import Problem

    try:
        return loading.load_class(name, Problem, "problem", PAGE)
    except LoadError as error:
        raise ProblemError(str(error)) from error


# ------------------------------------------------------------------------------------------------
# Trying a problem out


def check(problem: Problem, samples: int = 8) -> None:
    """Try a problem out on one batch, so that its mistakes are met before training.

    Builds a network for all tasks and one for the first and the last task alone, computes losses
    and gradients of one batch of the training split, and evaluates on the validation split, and the
    network of all tasks on the test split, too. Torch's random state is what it was before.

    Args:
        problem: The problem.
        samples: Size of the batch.

    Raises:
        ProblemError: Something is missing, has the wrong type or shape, or raises; the message
            says which, what was found, and what was expected.

    Example:
        >>> from ntkmtl.bench import problems
        >>> check(problems.create("qm9-mini"))
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        _Check(problem).run(samples)


class _Check:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.label = type(problem).__qualname__

    def fail(self, text: str) -> ProblemError:
        return ProblemError(f"{self.label}: {text} See {PAGE}.")

    def call(self, what: str, function: Callable[[], T]) -> T:
        try:
            return function()
        except (Exception, SystemExit) as error:
            if isinstance(error, ProblemError):
                raise
            raise self.fail(
                f"{what} raised {type(error).__name__}{place_of(error)}: {error}."
            ) from error

    def run(self, samples: int) -> None:
        self.check_attributes()
        import torch

        problem = self.problem
        size = problem.size("train")
        indices = torch.arange(min(samples, size, problem.recipe.batch_size))
        batch = self.call("batch('train', indices)", lambda: problem.batch("train", indices))
        model = self.check_model(batch, len(indices), None)
        self.check_metrics(model, None)
        # After training it would be too late.
        self.check_metrics(model, None, "test")
        judged = [metric.task for metric in problem.metrics]
        for task in dict.fromkeys((judged[0], judged[-1])):
            single = self.check_model(batch, len(indices), (task,))
            self.check_metrics(single, (task,))

    def check_attributes(self) -> None:
        from ntkmtl.bench.problems.base import Metric, Recipe

        problem = self.problem
        for key, kind in (("name", str), ("summary", str), ("recipe", Recipe)):
            found = getattr(problem, key, None)
            if not isinstance(found, kind) or not found:
                raise self.fail(f"{key} must be a {kind.__name__}. Found {_say(found)}.")
        tasks = getattr(problem, "tasks", None)
        names = isinstance(tasks, tuple | list) and all(isinstance(t, str) and t for t in tasks)
        if not (names and tasks and len(set(tasks)) == len(tasks)):
            raise self.fail(
                f"tasks must be a tuple of distinct names, at least one. Found {_say(tasks)}."
            )
        metrics = getattr(problem, "metrics", None)
        if not isinstance(metrics, tuple | list) or not metrics:
            raise self.fail(
                f"metrics must be a tuple of Metric, at least one. Found {_say(metrics)}."
            )
        for metric in metrics:
            if not isinstance(metric, Metric):
                raise self.fail(f"metrics must hold Metric. Found {_say(metric)}.")
            if wrong := wrong_type(metric):
                raise self.fail(f"metric {metric.name!r}: {wrong}.")
            if metric.task not in tasks:
                raise self.fail(
                    f"metric {metric.name!r} judges the task {metric.task!r}, which is not among "
                    f"the tasks {', '.join(tasks)}."
                )
        if wrong := wrong_type(problem.recipe):
            raise self.fail(f"recipe: {wrong}.")
        repeated = [m.name for m in metrics if sum(n.name == m.name for n in metrics) > 1]
        if repeated:
            raise self.fail(f"two metrics are named {repeated[0]!r}.")
        for said in ("notice", "describe"):
            text = self.call(f"{said}()", getattr(problem, said))
            if not isinstance(text, str):
                raise self.fail(f"{said}() must return a string. Found {_say(text)}.")
        options = self.call("options", lambda: problem.options)
        if not isinstance(options, Mapping):
            raise self.fail(f"options must be a dict. Found {_say(options)}.")
        try:
            json.dumps(options, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise self.fail(
                f"options must hold JSON values only, as baselines are kept under them: {error}."
            ) from error
        sizes = {s: self.call(f"size({s!r})", lambda s=s: problem.size(s)) for s in _SPLITS}  # type: ignore[misc]
        for split, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise self.fail(f"size({split!r}) must be a number above 0. Found {_say(size)}.")

    def check_model(self, batch: Any, size: int, tasks: tuple[str, ...] | None) -> MultiTaskModel:
        import torch

        from ntkmtl.bench.problems.base import MultiTaskModel
        from ntkmtl.kernel import branch

        problem = self.problem
        wanted = tuple(problem.tasks) if tasks is None else tasks
        said = "model()" if tasks is None else f"model({tasks!r})"
        model = self.call(said, lambda: problem.model(tasks))
        if not isinstance(model, MultiTaskModel):
            raise self.fail(
                f"{said} must return a MultiTaskModel, a torch.nn.Module with represent, predict "
                f"and shared_parameters. Found {_say(model)}."
            )
        shared = self.call("shared_parameters()", lambda: list(model.shared_parameters()))
        if not shared:
            raise self.fail(f"shared_parameters() of what {said} returned yields nothing.")
        for found in shared:
            if not isinstance(found, torch.Tensor):
                raise self.fail(f"shared_parameters() must yield parameters. Found {_say(found)}.")
        features = self.call("represent(batch)", lambda: model.represent(batch))
        if not model.has_representation:
            outputs = self.call("predict(batch)", lambda: model.predict(features))
            self.check_losses(outputs, batch, tasks, wanted, shared)
            return model
        single = isinstance(features, torch.Tensor)
        for part in [features] if single else features:
            if not isinstance(part, torch.Tensor) or part.ndim < 1 or part.shape[0] != size:
                raise self.fail(
                    f"represent(batch) must return a tensor with the {size} samples of the batch "
                    f"along dimension 0 (or one per task). Found {_say(part)}."
                )
            if not part.requires_grad:
                raise self.fail(
                    "represent(batch) returned a tensor without gradient. Is it detached, or made "
                    "under torch.no_grad()?"
                )
        views = branch(features, len(wanted)) if isinstance(features, torch.Tensor) else features
        outputs = self.call("predict(features)", lambda: model.predict(views))
        if not isinstance(outputs, list | tuple) or len(outputs) != len(wanted):
            raise self.fail(
                f"predict must return a list of {len(wanted)} outputs, one per head of what {said} "
                f"returned. Found {_say(outputs)}."
            )
        self.check_losses(outputs, batch, tasks, wanted, shared)
        return model

    def check_losses(
        self,
        outputs: Sequence[Tensor],
        batch: Any,
        tasks: tuple[str, ...] | None,
        wanted: tuple[str, ...],
        shared: Sequence[Tensor],
    ) -> None:
        import torch

        said = "losses(outputs, batch)" if tasks is None else f"losses(outputs, batch, {tasks!r})"
        losses = self.call(said, lambda: self.problem.losses(outputs, batch, tasks))
        if not isinstance(losses, Mapping):
            raise self.fail(f"{said} must return a dict from task to loss. Found {_say(losses)}.")
        if set(losses) != set(wanted):
            raise self.fail(
                f"{said} must have the keys {', '.join(wanted)}, and None for a task without "
                f"labels in the batch. Found {', '.join(map(str, losses)) or 'no key'}."
            )
        for task, loss in losses.items():
            if loss is None:
                continue
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                raise self.fail(
                    f"{said} must give task {task!r} one number, as loss.mean() is. "
                    f"Found {_say(loss)}."
                )
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self.fail(f"{said} gives task {task!r} a loss of {value}.")
            if not loss.requires_grad:
                raise self.fail(
                    f"{said} gives task {task!r} a loss without gradient. Is it detached?"
                )
            learned = [parameter for parameter in shared if parameter.requires_grad]
            reached = torch.autograd.grad(loss, learned, retain_graph=True, allow_unused=True)
            if all(gradient is None for gradient in reached):
                raise self.fail(
                    f"the loss of task {task!r} depends on no shared parameter. Are outputs "
                    "detached, or is the head given something else than the features?"
                )

    def check_metrics(
        self, model: MultiTaskModel, tasks: tuple[str, ...] | None, split: Split = "val"
    ) -> None:
        import torch

        problem = self.problem
        judged = [m for m in problem.metrics if tasks is None or m.task in tasks]
        said = f"evaluate(model, {split!r}{'' if tasks is None else f', {tasks!r}'})"
        values = self.call(said, lambda: problem.evaluate(model, split, tasks))
        if not isinstance(values, torch.Tensor) or values.shape != (len(judged),):
            raise self.fail(
                f"{said} must return a tensor of shape ({len(judged)},), one number for each of "
                f"the metrics {', '.join(m.name for m in judged)}. Found {_say(values)}."
            )
        bad = [m.name for m, v in zip(judged, values.tolist(), strict=True) if not math.isfinite(v)]
        if bad:
            raise self.fail(f"{said} returned a number that is not finite for {', '.join(bad)}.")
        if not model.training:
            raise self.fail(
                f"{said} left the network in eval mode. Put it back with model.train(training), "
                "or dropout and batch norm are off for the rest of the training."
            )


_SPLITS = ("train", "val", "test")


_TYPES: Mapping[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a string"),
}
"""Types of fields as they are annotated."""


def wrong_type(record: Any) -> str:
    """Return which field of a dataclass has a value of another type, ``""`` if none has."""
    for field in fields(record):
        kind, words = _TYPES.get(str(field.type), (object, ""))
        value = getattr(record, field.name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
            return f"{field.name} must be {words}. Found {repr(value)[:80]}"
    return "" if getattr(record, "name", "x") else "name must not be empty"


def _say(value: object) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of length {len(value)}: {repr(value)[:80]}"
    return f"{type(value).__name__}: {repr(value)[:80]}"
