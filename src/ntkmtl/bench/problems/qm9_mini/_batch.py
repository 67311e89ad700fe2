"""What the network and the losses of qm9-mini are given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FeatureBatch(NamedTuple):
    """b molecules as the network takes them, float32.

    Attributes:
        atoms: Scaled surroundings of the heavy atoms, (b, 9, F).
        mask: 1 where there is a heavy atom, (b, 9, 1).
        places: Their places from the center of nuclear charge in Angstrom, (b, 9, 3).
        shells: Weights of messages, (b, 9 * 6, 9).
        whole: Scaled features of the whole molecule, (b, 10).
        targets: What the heads shall say, (b, 11).
    """

    atoms: Tensor
    mask: Tensor
    places: Tensor
    shells: Tensor
    whole: Tensor
    targets: Tensor
