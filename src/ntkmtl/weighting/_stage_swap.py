"""Two sets of fixed weights, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting, Weighting
from ntkmtl.weighting._fixed import FixedWeights
from ntkmtl.weighting._method import method

__all__ = ["StageSwap"]

Weights = Sequence[float] | Mapping[str, float]


@method(
    "stage-swap",
    family="losses",
    summary="Two stages of given weights, as MACE's: forces first, then the energy",
    paper="Batatia et al.: MACE, NeurIPS 2022",
)
class StageSwap(LossWeighting):
    """One set of weights up to a step or an epoch, another one from there.

    MACE and other force fields train with a large weight of forces, and swap it for a large one of
    the energy near the end: 1 and 100 first, 1,000 and 100 in the second stage are defaults of
    MACE's script. Which numbers are right depends on the units of the losses.

    Args:
        first: Weights of the first stage, as ``fixed`` takes them: one per task in order, or by
            name. All 1 if None.
        second: Those of the second stage.
        switch_step: Number of steps of the first stage.
        switch_epoch: Number of epochs of the first stage, for loops that call ``end_epoch``; MACE
            swaps after three quarters of them. Give one of the two.

    Raises:
        TypeError: A weight is not a number.
        ValueError: A weight is negative or not finite, or of other tasks; ``second`` is given
            without a switch, or a switch without ``second``; or both switches are.

    Example:
        >>> import torch
        >>> w = StageSwap(first=[1, 100], second=[1000, 100], switch_step=1)
        >>> [w(losses=torch.tensor([1.0, 1.0])).tolist() for _ in range(2)]
        [[1.0, 100.0], [1000.0, 100.0]]
    """

    def __init__(
        self,
        first: Weights | None = None,
        second: Weights | None = None,
        switch_step: int | None = None,
        switch_epoch: int | None = None,
    ) -> None:
        if switch_step is not None and switch_epoch is not None:
            raise ValueError("stage-swap swaps once: give switch_step or switch_epoch, not both")
        switch = switch_step if switch_epoch is None else switch_epoch
        if (second is None) != (switch is None):
            raise ValueError(
                "stage-swap needs the weights of the second stage and when it begins: give "
                "second= and switch_step= (or switch_epoch=), or neither"
            )
        if switch is not None and switch < 0:
            raise ValueError(f"the switch must not be negative. Found {switch}.")
        self.first, self.second = first, second
        self.switch_step, self.switch_epoch = switch_step, switch_epoch
        self._stages = FixedWeights(first), FixedWeights(second)
        self._steps = 0
        self._epochs = 0

    def name_tasks(self, names: Sequence[str]) -> None:
        for stage in self._stages:
            stage.name_tasks(names)

    def prepare(self, tasks: int, device: torch.device) -> None:
        for stage in self._stages:
            stage.prepare(tasks, device)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        swapped = (self.switch_step is not None and self._steps >= self.switch_step) or (
            self.switch_epoch is not None and self._epochs >= self.switch_epoch
        )
        self._steps += 1
        return self._stages[swapped].of_losses(losses, tasks)

    def end_epoch(self) -> None:
        self._epochs += 1

    def needs(self) -> Iterator[tuple[str, str]]:
        """Yield ``end_epoch`` if the swap is at an epoch."""
        return Weighting.needs(self) if self.switch_epoch is not None else iter(())

    def _get_state(self) -> dict[str, Any]:
        return {"steps": self._steps, "epochs": self._epochs}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._steps, self._epochs = int(state["steps"]), int(state["epochs"])
