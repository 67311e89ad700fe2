"""A problem that trains in a moment and has metrics and recipes as a problem of the paper has."""

from __future__ import annotations

from typing import Any, ClassVar

from toy_problem import Toy

from ntkmtl.bench.problems.base import Metric, Recipe


class StandIn(Toy):
    """The toy with three metrics of the paper's Table 7 and two recipes."""

    name = "stand-in"
    metrics = (
        Metric("miou", "a", higher_is_better=True),
        Metric("abs_error", "b"),
        Metric("rel_error", "c"),
    )
    recipes: ClassVar[dict[str, Recipe]] = {
        "small": Recipe(2, 16, 0.02, minibatches=2, reduced=True, description="Two epochs."),
        "paper": Recipe(3, 16, 0.02, minibatches=2),
    }

    def __init__(self, recipe: str = "paper", data: str | None = None) -> None:
        if recipe not in self.recipes:
            raise ValueError(f"recipe must be small or paper. Found recipe={recipe!r}.")
        if data == "missing":
            raise FileNotFoundError("missing is not there.")
        super().__init__()
        self.recipe = self.recipes[recipe]

    @property
    def options(self) -> dict[str, Any]:
        return {"width": 16}

    def notice(self) -> str:
        return "Labels are derived."
