"""Random state of the methods that draw numbers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RandomState"]


class RandomState:
    """A random stream that belongs to one weighting, and that a checkpoint can hold.

    Torch's global streams are neither read nor changed by drawing from it, so that weightings in
    several threads are reproducible, and dropout beside them is too.

    Args:
        seed: Where it starts; torch's initial seed if None, so that ``torch.manual_seed`` before
            the method is made determines it.
    """

    def __init__(self, seed: int | None = None) -> None:
        start = torch.initial_seed() if seed is None else seed
        self.generator = torch.Generator("cpu").manual_seed(start % 2**63)

    def on(self, device: torch.device) -> torch.Generator:
        """Return a generator that draws on a device.

        On the CPU it is the stream itself. On others it is a new one whose seed is drawn from the
        stream, so that the state stays on the CPU and is the same wherever the numbers are used.
        """
        if device.type == "cpu":
            return self.generator
        seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
        return torch.Generator(device).manual_seed(seed)

    def get(self) -> Tensor:
        """Return the state, uint8."""
        return self.generator.get_state()

    def set(self, state: Tensor) -> None:
        """Go on from a state."""
        self.generator.set_state(state.cpu())
