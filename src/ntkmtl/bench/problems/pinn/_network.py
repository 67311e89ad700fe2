"""The network that stands for a solution, and its derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Field(nn.Module):
    """A network of tanh layers from points to values of the solution.

    Args:
        low: Lower ends of the domain, one per coordinate; coordinates are brought to [-1, 1].
        high: Upper ends.
        outputs: Numbers at a point.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        features: What is made of the coordinates in [-1, 1] before the first layer; nothing if
            None.
    """

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        outputs: int,
        width: int,
        depth: int,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32), persistent=False)
        self.features = features
        inputs = (
            torch.zeros(1, len(low)) if features is None else features(torch.zeros(1, len(low)))
        )
        sizes = [inputs.shape[1], *[width] * depth]
        layers: list[nn.Module] = []
        for first, second in itertools.pairwise(sizes):
            layers += [nn.Linear(first, second), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor) -> Tensor:
        """Return values of shape (b, outputs) at points of shape (b, d)."""
        x = 2 * (points - self.low) / (self.high - self.low) - 1
        values: Tensor = self.layers(x if self.features is None else self.features(x))
        return values


def gradient(values: Tensor, points: Tensor) -> Tensor:
    """Return the derivatives of values of shape (b,) by their points, shape (b, d).

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 1.0]], requires_grad=True)
        >>> slope = gradient(x[:, 0].square() * x[:, 1], x)
        >>> slope.tolist(), gradient(slope[:, 0], x).tolist()
        ([[6.0, 9.0]], [[2.0, 6.0]])
    """
    (found,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    return found


def sloped(field: nn.Module, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return points (b, d) that can be differentiated by, u there (b,), and its slope (b, d)."""
    inside = points.detach().requires_grad_()
    u = field(inside)[:, 0]
    return inside, u, gradient(u, inside)
