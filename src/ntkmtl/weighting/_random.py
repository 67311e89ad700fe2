"""Random state of the methods that draw numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["RandomState"]


class RandomState:
    """A stream of random numbers of its own, that a checkpoint can hold.

    Args:
        seed: Where it starts; torch's initial seed if None, so that ``torch.manual_seed`` before
            the method is made determines it.
    """

    def __init__(self, seed: int | None = None) -> None:
        start = torch.initial_seed() if seed is None else seed
        self.generator = torch.Generator().manual_seed(start % 2**63)

    def get(self) -> Tensor:
        """Return the state, uint8."""
        return self.generator.get_state()

    def set(self, state: Tensor) -> None:
        """Go on from a state."""
        self.generator.set_state(state.cpu())

    @contextmanager
    def as_global(self, device: torch.device) -> Iterator[None]:
        """Let torch's global random functions draw from this stream, and leave theirs untouched.

        Args:
            device: The device on which numbers are drawn.
        """
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
            # torch.manual_seed would reset every GPU's stream too, of most of which nobody keeps a
            # copy: dropout there would follow this method's seed.
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            elif device.type != "cpu":
                torch.manual_seed(seed)
            yield
