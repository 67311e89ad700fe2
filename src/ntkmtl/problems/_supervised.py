"""What several supervised problems share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from ntkmtl.problems.base import MultiTaskModel, Recipe

__all__ = ["chosen_recipe", "evaluating", "one_output_per_task", "positions"]

_Item = TypeVar("_Item")


def chosen_recipe(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> chosen_recipe({"small": Recipe(1, 2, 0.1)}, "large")
        Traceback (most recent call last):
        ...
        ValueError: recipe must be one of small. Found recipe='large'.
    """
    if name not in recipes:
        raise ValueError(f"recipe must be one of {', '.join(recipes)}. Found recipe={name!r}.")
    return recipes[name]


def positions(known: Sequence[str], asked: Sequence[str] | None) -> list[int]:
    """Return the positions of tasks among all tasks, those of all if None are asked for.

    Raises:
        ValueError: A task is unknown or named twice, or none is named.

    Example:
        >>> positions(("a", "b", "c"), ["c", "a"])
        [2, 0]
    """
    if asked is None:
        return list(range(len(known)))
    unknown = [task for task in asked if task not in known]
    if unknown:
        raise ValueError(
            f"no task is named {', '.join(map(repr, unknown))}. Known: {', '.join(known)}"
        )
    if len(set(asked)) != len(asked) or not asked:
        raise ValueError(f"tasks must be named once each, at least one. Found {list(asked)}.")
    return [known.index(task) for task in asked]


def one_output_per_task(outputs: Sequence[_Item], tasks: Sequence[int]) -> None:
    """Refuse a network that has not as many heads as there are tasks.

    Raises:
        ValueError: It has not.
    """
    if len(outputs) != len(tasks):
        raise ValueError(f"{len(outputs)} outputs for {len(tasks)} tasks")


@contextmanager
def evaluating(model: MultiTaskModel) -> Iterator[None]:
    """Put a network into evaluation mode without gradients, and back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
