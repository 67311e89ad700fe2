"""Recording the kernel while a run is trained: ``record.json`` beside the run's other files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ntkmtl.analysis import Recorder, RecordFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ntkmtl.bench.problems.base import Recipe

__all__ = ["record_differences", "record_settings"]


def record_settings(record: Mapping[str, Any] | None, recipe: Recipe) -> dict[str, Any] | None:
    """Return the settings of a run's recorder, the same whatever the method.

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
