"""NTKMTL-SR by hand: the least that a step can do with torch alone.

No check, no hook, no mask, no state, one trunk and linear heads: what a user would write for one
network and throw away. It is the floor that the Balancer's step is held against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Network", "minimal_sr_step"]


@dataclass
class Network:
    """A network with a batch.

    Attributes:
        parameters: All parameters.
        heads: Each head's own parameters.
        represent: Runs the trunk.
        losses: From the representation, or one copy of it per task, to k losses, each the mean over
            the batch.
    """

    parameters: list[nn.Parameter]
    heads: list[list[nn.Parameter]]
    represent: Callable[[], Tensor]
    losses: Callable[[Tensor | list[Tensor]], list[Tensor]]


def minimal_sr_step(network: Network, minibatches: int) -> Tensor:
    r"""Fill ``.grad`` as NTKMTL-SR does: Eq. 16 and 18 with blocks of samples.

    Heads read copies of z that are cut off the trunk, so that one call of the engine gives each
    task's own gradient.

    Args:
        network: Its ``.grad`` are None.
        minibatches: The paper's n, a divisor of the batch size.

    Returns:
        The weights, shape (k,).
    """
    z = network.represent()
    copies = [z.detach().requires_grad_() for _ in network.heads]
    losses = network.losses(copies)
    flat = [p for head in network.heads for p in head]
    grads = torch.autograd.grad(losses, [*copies, *flat])
    k = len(copies)
    rows = torch.stack(grads[:k])
    # The gradient of a mini-batch's mean loss is n times its share of the batch's.
    blocks = rows.view(k, minibatches, -1).square().sum(dim=2).mul_(minibatches**2)
    eigenvalues = blocks.amax(dim=1)
    weights = (eigenvalues.mean() / eigenvalues).sqrt()
    z.backward((weights @ rows.view(k, -1)).view_as(z))
    on_heads = iter(grads[k:])
    for head, weight in zip(network.heads, weights.unbind(), strict=True):
        for p in head:
            p.grad = next(on_heads) * weight
    return weights
