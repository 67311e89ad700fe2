"""Multi-task reinforcement learning: Soft Actor-Critic on Meta-World, balanced by any method.

* :class:`MetaWorld` runs robot-manipulation tasks in step with each other.
* :class:`Replay` keeps transitions, task by task.
* :class:`MultiTaskSAC` learns one policy for all tasks; a :class:`ntkmtl.Balancer` weighs their
  losses.
* :func:`train` trains one variant of an agent with one seed and leaves a run directory;
  :func:`compare` trains several; :func:`summarize` makes the table of success rates.

The names are loaded on first use. Only :class:`MetaWorld` and what uses it need the extra ``rl``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntkmtl.loading import on_first_use

if TYPE_CHECKING:
    from ntkmtl.bench.reinforce.comparison import compare
    from ntkmtl.bench.reinforce.environment import (
        DrawingError,
        EnvironmentStep,
        MetaWorld,
        Simulator,
        expert,
    )
    from ntkmtl.bench.reinforce.frames import Film, film, film_run, save_strip
    from ntkmtl.bench.reinforce.recipes import (
        RECIPES,
        VARIANTS,
        ReinforceRecipe,
        Variant,
        recipe_named,
        variant_named,
    )
    from ntkmtl.bench.reinforce.replay import Replay, ReplayBatch
    from ntkmtl.bench.reinforce.results import Success, save_curves, summarize
    from ntkmtl.bench.reinforce.sac import MultiTaskSAC, Update
    from ntkmtl.bench.reinforce.training import evaluate, train

__all__ = [
    "RECIPES",
    "VARIANTS",
    "DrawingError",
    "EnvironmentStep",
    "Film",
    "MetaWorld",
    "MultiTaskSAC",
    "ReinforceRecipe",
    "Replay",
    "ReplayBatch",
    "Simulator",
    "Success",
    "Update",
    "Variant",
    "compare",
    "evaluate",
    "expert",
    "film",
    "film_run",
    "recipe_named",
    "save_curves",
    "save_strip",
    "summarize",
    "train",
    "variant_named",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        ".comparison": ("compare",),
        ".environment": ("DrawingError", "EnvironmentStep", "MetaWorld", "Simulator", "expert"),
        ".frames": ("Film", "film", "film_run", "save_strip"),
        ".recipes": (
            "RECIPES",
            "ReinforceRecipe",
            "VARIANTS",
            "Variant",
            "recipe_named",
            "variant_named",
        ),
        ".replay": ("Replay", "ReplayBatch"),
        ".results": ("Success", "save_curves", "summarize"),
        ".sac": ("MultiTaskSAC", "Update"),
        ".training": ("evaluate", "train"),
    },
)
