"""What one run is asked to be and to record, carried whole to the place that uses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ntkmtl.analysis import Recorder, RecordFileError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ntkmtl.bench.compute.device import Device
    from ntkmtl.bench.problems.base import Recipe

__all__ = ["RunSpec", "record_differences", "record_settings"]


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
            :func:`ntkmtl.bench.training.scores.read_baseline` reads them. A resumed run keeps the
            baseline that it began with. Other methods ignore it.
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
