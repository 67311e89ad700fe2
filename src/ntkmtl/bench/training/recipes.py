"""Recipes with some settings changed, for all methods or for one."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.runs import SINGLE_TASK
from ntkmtl.bench.training.comparison import SweepError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ntkmtl.bench.problems.base import Problem, Recipe
    from ntkmtl.bench.training.comparison import Comparison

__all__ = ["changed_recipe", "recipe_line", "recipe_of", "recipes_by_method"]

_CHANGES = ("epochs", "batch_size", "learning_rate", "minibatches", "training")
_TRAINING = ("precision", "accumulate", "clip", "compile", "on_nonfinite", "lbfgs_steps")


def changed_recipe(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    minibatches: int | None = None,
    training: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe with some settings changed.

    Fewer epochs than the recipe's make it a reduced one, and the description says what was changed.

    Args:
        recipe: The recipe.
        epochs: Passes over the training split.
        batch_size: Samples per step.
        learning_rate: Peak learning rate.
        minibatches: The paper's n.
        training: Changes of ``precision``, ``accumulate``, ``clip``, ``compile``, ``on_nonfinite``
            and ``lbfgs_steps``.

    Raises:
        SweepError: ``training`` names anything else.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe = Recipe(epochs=30, batch_size=64, learning_rate=1e-3, description="Published")
        >>> changed = changed_recipe(recipe, epochs=3)
        >>> changed.reduced, changed.description
        (True, 'Published (changed: epochs 30 to 3)')
    """
    for key in training or ():
        if key not in _TRAINING:
            raise SweepError(f"training has no {key!r}; it has {', '.join(_TRAINING)}")
    wanted = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "minibatches": minibatches,
        **(training or {}),
    }
    current = asdict(recipe)
    changes = {k: v for k, v in wanted.items() if v is not None and v != current[k]}
    if not changes:
        return recipe
    words = ", ".join(
        f"{key.replace('_', ' ')} {current[key]} to {new}" for key, new in changes.items()
    )
    return replace(
        recipe,
        **changes,
        reduced=recipe.reduced or (epochs is not None and epochs < recipe.epochs),
        description=f"{recipe.description} (changed: {words})".strip(),
    )


def recipe_line(recipe: Recipe) -> str:
    """Return a recipe in one line, for people.

    Example:
        >>> from ntkmtl.bench.problems.base import Recipe
        >>> recipe_line(Recipe(epochs=2, batch_size=64, learning_rate=1e-3, description="Tiny"))
        'Recipe: 2 epochs, batches of 64, learning rate 0.001, the last epoch is tested. Tiny.'
    """
    chosen = {
        "last": "the last epoch is tested",
        "validation": "the epoch is chosen on the validation split",
    }[recipe.chosen_epoch]
    description = f" {recipe.description.removesuffix('.')}." if recipe.description else ""
    epochs = f"{recipe.epochs:,} epoch{'' if recipe.epochs == 1 else 's'}"
    if recipe.lbfgs_steps:
        epochs += f" of Adam and {recipe.lbfgs_steps:,} of L-BFGS"
    return (
        f"Recipe: {epochs}, batches of {recipe.batch_size:,}, learning rate "
        f"{recipe.learning_rate:g}, {chosen}.{description}"
    )


def recipe_of(asked: Comparison, problem: Problem) -> Recipe:
    """Return the recipe of a comparison: the problem's, with the changes for all methods.

    Args:
        asked: The comparison.
        problem: Its problem.

    Raises:
        SweepError: A change names an unknown field.
    """
    return changed_recipe(
        problem.recipe,
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        learning_rate=asked.learning_rate,
        minibatches=asked.minibatches,
        training=asked.training,
    )


def recipes_by_method(
    names: Sequence[str], asked: Mapping[str, Mapping[str, Any]], recipe: Recipe
) -> dict[str, Recipe]:
    """Return the recipes of the methods whose recipe is changed.

    Args:
        names: The methods compared.
        asked: Changes by method.
        recipe: The recipe of the others.

    Raises:
        SweepError: A change names a method that is not compared, or an unknown recipe field.
    """
    known = (*names, SINGLE_TASK)
    for name, changes in asked.items():
        if name not in known:
            raise SweepError(
                f"a recipe is given for {name!r}, which is not among the methods compared: "
                f"{', '.join(known)}"
            )
        for key in changes:
            if key not in _CHANGES:
                raise SweepError(
                    f"the recipe of {name} cannot change {key!r}; it can change "
                    f"{', '.join(_CHANGES)}"
                )
    return {name: changed_recipe(recipe, **changes) for name, changes in asked.items()}
