"""The trained network of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor

from ntkmtl._warnings import warn
from ntkmtl.bench import problems
from ntkmtl.bench.compute.environment import problem_version
from ntkmtl.bench.problems.base import MultiTaskModel, Prediction, Problem, Split
from ntkmtl.bench.runs import MODEL, Run, RunFileError, canonical_json, differences, load_run
from ntkmtl.bench.runs.model_file import read_model
from ntkmtl.bench.trained._output import export_program

if TYPE_CHECKING:
    import os

__all__ = ["TrainedModel", "joined", "load"]


class TrainedModel:
    """The network of a finished run, in evaluation mode on the CPU, and its problem.

    Made by :func:`load`.

    Attributes:
        run: The run.
        problem: Its problem.
        model: The network.
        tasks: Names of the tasks that it predicts.
    """

    def __init__(self, run: Run, problem: Problem, model: MultiTaskModel) -> None:
        self.run = run
        self.problem = problem
        self.model = model.eval()
        self.tasks: tuple[str, ...] = tuple(run.config.tasks)

    @property
    def _chosen(self) -> tuple[str, ...] | None:
        """The tasks as problems are asked for them: None for all."""
        return None if self.run.config.single_task is None else self.tasks

    def predict(self, inputs: Any = "test") -> dict[str, Prediction]:
        """Return the predictions by task, in the units of the metrics, and as classes.

        Args:
            inputs: ``"train"``, ``"val"`` or ``"test"`` for the problem's samples, in their order
                and without augmentation; a batch, as the problem's ``batch`` returns it; or, for
                a table, new rows as :meth:`encode` takes them. What is unusual about these, as a
                level that no training row had, is warned of.

        Returns:
            One :class:`~ntkmtl.bench.problems.base.Prediction` per task.

        Raises:
            ValueError: There is no such split, the problem has no samples in it, new rows
                cannot be read, or it is not a batch of the problem.

        Example:
            See :mod:`ntkmtl.bench.trained`.
        """
        if isinstance(inputs, Path) or hasattr(inputs, "iloc"):
            new = self.encode(inputs)
            for warning in new.warnings:
                warn(warning)
            inputs = new.inputs
        if not isinstance(inputs, str):
            return self._predict_batch(inputs)
        if inputs not in get_args(Split) and hasattr(self.problem, "encode_new"):
            raise ValueError(self._what_to_pass(repr(inputs)))
        split = _split(inputs)
        parts = [
            self._predict(self.problem.evaluation_batch(split, indices))
            for indices in self._indices(split)
        ]
        return {task: joined([part[task] for part in parts]) for task in parts[0]}

    def _predict_batch(self, batch: Any) -> dict[str, Prediction]:
        try:
            return self._predict(batch)
        except (AttributeError, LookupError, TypeError) as error:
            kind = type(batch)
            name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
            raise ValueError(f"{self._what_to_pass(name)} ({error})") from error

    def _what_to_pass(self, found: str) -> str:
        new = hasattr(self.problem, "encode_new")
        rows = "; or new rows, as a pandas data frame or a file's pathlib.Path" if new else ""
        return (
            "predict takes 'train', 'val' or 'test'; a batch, as problem.batch(...) returns it"
            f"{rows}. Found {found}."
        )

    def _predict(self, batch: Any) -> dict[str, Prediction]:
        with torch.no_grad():
            outputs = self.model.predict(self.model.represent(batch))
            return self.problem.predictions(outputs, self._chosen)

    def encode(self, source: Any) -> Any:
        """Return new rows as the network takes them.

        Args:
            source: A file, or a pandas data frame.

        Returns:
            ``inputs``, a batch; ``ids``, columns that are copied beside predictions; and
            ``warnings``, one sentence each.

        Raises:
            ValueError: The problem is not ``table`` or one like it, or the rows cannot be read.
        """
        encode = getattr(self.problem, "encode_new", None)
        if encode is None:
            raise ValueError(
                f"new rows are for runs of a table, and {self.run.path} is one of "
                f"{self.problem.name}: predict a split, or a batch in Python"
            )
        return encode(source)

    def _indices(self, split: Split) -> list[Tensor]:
        size = self.problem.size(split)
        if not size:
            raise ValueError(f"{self.problem.name} has no samples in the split {split}")
        return list(torch.arange(size).split(int(self.run.config.recipe["batch_size"])))

    def truth(self, split: str = "test") -> dict[str, Tensor]:
        """Return the labels of a split in the terms of :meth:`predict`, by task.

        A missing label is NaN, or -1 for a class. Problems that do not say their labels give none.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ValueError: There is no such split, or the problem has no samples in it.
        """
        chosen = _split(split)
        parts = [self.problem.truth(chosen, i, self._chosen) for i in self._indices(chosen)]
        return {task: torch.cat([part[task] for part in parts]) for task in parts[0]}

    def metrics(self, split: str = "test") -> dict[str, float]:
        """Return the metrics of the network on a split, by name.

        On the test split these are the numbers in ``result.json``, where the recipe does not take
        the mean over several epochs.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ValueError: There is no such split.
        """
        values = self.problem.evaluate(self.model, _split(split), self._chosen).tolist()
        names = [metric.name for metric in self.run.config.metrics]
        return dict(zip(names, values, strict=True))

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the network by :func:`torch.export.save`, for use without this package.

        ``torch.export.load(path).module()`` takes the tensors of a batch that the network reads,
        samples along dimension 0 in any number, and returns a dict from task to predictions as
        :meth:`predict` makes them: probabilities for classes, values for all else. The file's
        extra file ``ntkmtl.json`` names the inputs and the classes.

        Args:
            path: The file, as ``model.pt2``.

        Raises:
            ValueError: The network cannot be exported.
            OSError: The file cannot be written.
        """
        export_program(Path(path), self.model, self.problem, self._chosen)


def load(
    run: str | os.PathLike[str] | Run,
    problem: Problem | str | None = None,
    *,
    with_data: bool = True,
) -> TrainedModel:
    """Return the trained network of a finished run.

    The problem is created as it was for the run, and must be the same: data that have changed are
    refused. Problems of this package are found by name. Your own must be given, as loading one
    runs its code: nothing that a run folder names is run. If its source has changed since, a
    warning says so.

    Args:
        run: The run's folder, as ``runs/table/ntkmtl/seed-0``, or the run.
        problem: The run's problem, or its name as ``path/file.py:ClassName`` for a custom one.
        with_data: Whether the problem's data are needed; without them only new inputs can be
            predicted, where the problem allows that.

    Raises:
        RunFileError: The run is incomplete or kept no network, or a file is damaged.
        ProblemNotFoundError: The problem cannot be created, as its data were deleted, say.
        ValueError: The problem is another one, or is not one of samples and losses.
    """
    run = run if isinstance(run, Run) else load_run(run)
    _require_supervised(run)
    weights, values, tensors = read_model(run)
    found = _problem_of(run, problem, None if with_data else (values, tensors))
    _require_same(run, found)
    _compare_source(run, found)
    chosen = None if run.config.single_task is None else tuple(run.config.tasks)
    with torch.random.fork_rng(devices=[]):
        model = found.model(chosen)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunFileError(
            run.path / MODEL,
            f"does not fit the network that {found.name} builds in this version: {error}",
        ) from error
    return TrainedModel(run, found, model)


def _problem_of(
    run: Run,
    given: Problem | str | None,
    fitted: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None,
) -> Problem:
    """Return the problem of a run, without its data where ``fitted`` allows that."""
    if isinstance(given, Problem):
        return given
    config = run.config
    name = given or config.problem
    if given is None and not _is_ours(run):
        raise ValueError(
            f"{run.path}: its problem is {config.problem_class}, a class of your own, whose code "
            f"would be run. Say so: load(run, problem={config.problem_class!r}), or "
            f"--problem {config.problem_class} (or path/file.py:ClassName)"
        )
    options = dict(config.created_with or {})
    if fitted is not None and (fitted[0] or fitted[1]):
        kind: type[Problem] = problems.load_target(name)
        return kind.from_fitted(options, *fitted)
    return problems.find_problem(name, options)


def _is_ours(run: Run) -> bool:
    """Whether the run's problem is one of this package."""
    if problems.spec(run.config.problem) is None:
        return False
    kind = problems.load_target(run.config.problem)
    return bool(run.config.problem_class == f"{kind.__module__}:{kind.__qualname__}")


def _require_supervised(run: Run) -> None:
    entry = problems.spec(run.config.problem)
    if entry is not None and not entry.supervised:
        raise ValueError(
            f"{run.path} is a run of {entry.name}, whose agents act in a simulation: there are no "
            "samples to predict. Its agent is in agent.pt"
        )


def _require_same(run: Run, problem: Problem) -> None:
    """Refuse a problem that is not the one that the run was trained on."""
    if problem.name != run.config.problem:
        raise ValueError(
            f"{run.path} is a run of {run.config.problem!r}. Found the problem {problem.name!r}."
        )
    now = json.loads(canonical_json(problem.options))
    if found := differences(dict(run.config.problem_options), now):
        raise ValueError(
            f"{run.path} was trained on another version of its problem {problem.name}: in the run, "
            f"{'; '.join(found)} where it is created now"
            + (
                ". The data have changed: put the old ones back, or train again"
                if any(line.startswith("data_sha256") for line in found)
                else ""
            )
        )


def _compare_source(run: Run, problem: Problem) -> None:
    """Warn if the source of a custom problem is not what it was in training."""
    said = {k: v for k, v in run.config.versions.items() if k.startswith("source of ")}
    now = problem_version(type(problem))
    if said and list(said.values()) != list(now.values()):
        warn(
            f"the source of {problem.name} is not what it was when {run.path} was trained "
            f"({_listed(said)}; now {_listed(now)}): its data or predictions may be others"
        )


def _listed(sources: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {digest}" for key, digest in sources.items()) or "of this package"


def _split(name: str) -> Split:
    if name not in get_args(Split):
        raise ValueError(f"a split is train, val or test. Found {name!r}.")
    return cast("Split", name)


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Return the predictions of one task for several batches, one after the other."""
    shares = [part.probabilities for part in parts if part.probabilities is not None]
    return Prediction(
        torch.cat([part.values for part in parts]),
        parts[0].classes,
        torch.cat(shares) if shares else None,
        parts[0].dates,
    )
