"""How long and how a table's network is trained, by the number of rows."""

from __future__ import annotations

from ntkmtl.bench.problems.base import Recipe

STEPS = 2_500


def recipe_for(rows: int) -> Recipe:
    """Return the recipe for so many training rows.

    Small tables get small batches and many epochs, so that every table gets about 2,500 steps and
    at least two epochs; the epoch is chosen on the validation split.

    Args:
        rows: Number of training rows, at least 8.

    Example:
        >>> for rows in (100, 538, 6_387, 1_000_000):
        ...     found = recipe_for(rows)
        ...     print(found.epochs, found.batch_size)
        208 8
        156 32
        104 256
        3 1024
    """
    batch = 8
    while batch < 1024 and batch * 2 <= rows / 16:
        batch *= 2
    epochs = max(2, round(STEPS / (rows // batch)))
    return Recipe(
        epochs=epochs,
        batch_size=batch,
        learning_rate=2e-3,
        minibatches=4,
        weight_decay=1.0,
        chosen_epoch="validation",
        description=(
            f"The package's recipe for {rows:,} training rows, about {STEPS:,} steps and at least "
            "2 epochs; nothing tuned to this table but the epoch"
        ),
    )


def default_width(rows: int) -> int:
    """Return the width of the network for so many training rows."""
    return 64 if rows < 1_000 else 128 if rows < 20_000 else 256
