"""A world without a simulator, and random batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ntkmtl.bench.reinforce import EnvironmentStep, ReinforceRecipe, ReplayBatch, recipe_named


class ToyWorld:
    """A point per task that is to be pushed to the task's place; three numbers, one action."""

    def __init__(self, tasks: Sequence[str], seed: int, horizon: int) -> None:
        self._tasks = tuple(tasks)
        self.horizon = horizon
        self.places = torch.linspace(-0.5, 0.5, len(tasks))
        self.draws = torch.Generator().manual_seed(seed)
        self.clock = 0
        self._observations = torch.zeros(len(tasks), 3)
        self.solved = torch.zeros(len(tasks), dtype=torch.bool)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @property
    def observations(self) -> Tensor:
        return self._observations

    def _see(self) -> None:
        time = torch.full_like(self.at, self.clock / self.horizon)
        self._observations = torch.stack([self.at, self.places, time], dim=1)

    def reset(self, goal: int | None = None) -> Tensor:
        k = len(self._tasks)
        self.at = (
            2 * torch.rand(k, generator=self.draws) - 1
            if goal is None
            else torch.full((k,), 0.9 - 0.1 * goal)
        )
        self.clock = 0
        self.solved = torch.zeros(k, dtype=torch.bool)
        self._see()
        return self._observations

    def step(self, actions: Tensor) -> EnvironmentStep:
        self.at = (self.at + 0.3 * actions[:, 0]).clamp(-1, 1)
        self.clock += 1
        self._see()
        rewards = 1 - (self.at - self.places).abs()
        self.solved = self.solved | (rewards > 0.9)
        ended = self.clock == self.horizon
        return EnvironmentStep(self._observations, rewards, rewards, self.solved, ended)

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.draws.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.draws.set_state(state["draws"])

    def close(self) -> None:
        pass


def make_toy(recipe: ReinforceRecipe, tasks: Sequence[str], seed: int) -> ToyWorld:
    return ToyWorld(tasks, seed, recipe.horizon)


def toy_recipe(**changes: Any) -> ReinforceRecipe:
    settings: dict[str, Any] = {
        "name": "toy",
        "tasks": ("a", "b", "c"),
        "vector_steps": 60,
        "horizon": 10,
        "evaluate_every": 20,
        "evaluation_episodes": 4,
        "random_steps": 8,
        "batch_size": 12,
        "capacity": 90,
        "hidden": (8, 8),
        "every": 2,
        "goals": "random",
        "learning_rate": 3e-4,
        "bfloat16_products": False,
        **changes,
    }
    return replace(recipe_named("cpu-mt4"), **settings)


def random_batch(
    sizes: Sequence[int] = (6, 6, 6), observation: int = 5, action: int = 2, seed: int = 0
) -> ReplayBatch:
    """Return a batch whose tasks differ much in the scale of their rewards."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    scales = torch.repeat_interleave(10.0 ** torch.arange(len(sizes)), torch.tensor(sizes))
    return ReplayBatch(
        torch.randn(rows, observation, generator=generator),
        2 * torch.rand(rows, action, generator=generator) - 1,
        scales * torch.rand(rows, generator=generator),
        torch.randn(rows, observation, generator=generator),
        tuple(sizes),
    )
